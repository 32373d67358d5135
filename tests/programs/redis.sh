#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Redis that keeps nothing.
set -eu
exec redis-server --bind 0.0.0.0 --protected-mode no --save "" --dir "$1"
