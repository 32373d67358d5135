#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The servers of node.js.
set -eu
exec node "$(dirname "$0")/node.js" serve
