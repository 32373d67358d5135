#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PID 1 of what container runtimes need of a node beside its network: mount and process namespaces
# of their own, so that killing this process ends them with all their containers and mounts.
# $1: the runtimes' directory, at the same place for the machine. $2 is below it and a shared mount:
# there the agent finds the network namespaces of containerd's pods. podman has no choice but
# /run/netns, which the sandbox has made a shared mount.
set -eu
findmnt -rno TARGET | while read -r at; do
	[ "$at" = "$2" ] || [ "$at" = /run/netns ] || mount --make-private "$at" ||
		echo "$at may have been unmounted since it was listed"
done
for dir in culvert netns; do
	mkdir "$1/$dir"
	mount --bind "/run/$dir" "$1/$dir"
done
mount -t tmpfs -o mode=755 run /run
mount --make-private /run
for dir in culvert netns lock; do
	mkdir "/run/$dir"
done
for dir in culvert netns; do
	mount --move "$1/$dir" "/run/$dir"
done
mount -t tmpfs -o mode=755 lib /var/lib
touch "$1/up"
sleep infinity &
wait
