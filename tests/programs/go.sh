#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The servers of http.go, which the test has built beside $1.
set -eu
exec "$1/../http" serve "$1"
