#!/bin/busybox sh
# Is the agent; 15 s after its start PID 1 is put into a control group that is frozen: as hung as a program can be.
(
    /bin/busybox sleep 15
    /bin/busybox mkdir -p /tmp/groups
    /bin/busybox mount -t cgroup2 none /tmp/groups
    /bin/busybox mkdir /tmp/groups/frozen
    echo 1 >/tmp/groups/frozen/cgroup.procs
    echo 1 >/tmp/groups/frozen/cgroup.freeze
    echo "<0>lab: PID 1 is frozen" >/dev/kmsg
) 3>&- </dev/null >/dev/null 2>&1 &
exec /sbin/cid-agent.real "$@"
