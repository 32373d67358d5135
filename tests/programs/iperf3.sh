#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# iperf3, which serves one client after the other. It has no file of its own in $1.
exec iperf3 -s
