#!/bin/busybox sh
# Is the agent; 15 s after its start the kernel crashes and is told not to reboot by itself: it stands still for ever.
(
    /bin/busybox sleep 15
    echo 0 >/proc/sys/kernel/panic
    echo "<0>lab: the kernel stands still" >/dev/kmsg
    /bin/busybox sleep 1
    echo c >/proc/sysrq-trigger
) 3>&- </dev/null >/dev/null 2>&1 &
exec /sbin/cid-agent.real "$@"
