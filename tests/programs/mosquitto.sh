#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Mosquitto, which lets everybody in.
set -eu
cat > "$1/conf" <<CONF
listener 1883 0.0.0.0
allow_anonymous true
persistence false
log_dest stderr
user root
CONF
exec mosquitto -c "$1/conf"
