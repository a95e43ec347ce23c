#!/bin/bash
# Runs in the guest once systemd is up. Every step says what it is; the first that fails ends it.
set -euo pipefail
step=boot
ended() {
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "FAILED: $step"
        systemctl status --no-pager --full queue-trace || :
        journalctl --no-pager --unit=queue-trace --lines=40 || :
    fi
    printf '\nVM-EXIT rc=%d\n' "$status"
    vm-exit "$status"
}
trap ended EXIT
begin() { step=$1; echo "$(cut -d' ' -f1 /proc/uptime) s: $1"; }
property() { systemctl show --value --property="$1" queue-trace; }
# The body of an answer of the agent.
ask() {
    exec 3<>/dev/tcp/127.0.0.1/9801
    printf 'GET %s HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n' "$1" >&3
    cat <&3
    exec 3>&-
}
# The sum of a metric's series with these labels.
sum() { ask /metrics | grep "^$1{" | grep --fixed-strings "$2" | awk_sum; }
awk_sum() { local total=0 value; while read -r _ value _; do total=$((total + ${value%.*})); done; echo "$total"; }
# Waits for a condition, some seconds.
comes() {
    for _ in $(seq "$1"); do
        if "${@:2}"; then return; fi
        sleep 1
    done
    return 1
}

begin 'the installation did not start it'
! systemctl is-active --quiet queue-trace
begin 'start'
systemctl start queue-trace
[ "$(property ActiveState)" = active ]
[ -n "$(property StatusText)" ]
pid=$(property MainPID)
begin 'it runs as its own user, and gave up what only the self-test needs'
field() { sed -n "s/^$1:[[:space:]]*\([^[:space:]]*\).*/\1/p" "/proc/$pid/status"; }
[ "$(field Uid)" -ne 0 ]
[ "$(field NoNewPrivs)" = 1 ]
[ "$(field Seccomp)" = 2 ]
capabilities=$((16#$(field CapEff)))
for given_up in 12 13; do [ $(((capabilities >> given_up) & 1)) -eq 0 ]; done
begin 'it is attached by functions, with the self-test passed'
ask /readyz | grep --quiet '^HTTP/1.1 200'
ask /metrics >/tmp/metrics
grep '^queue_trace_attach_info' /tmp/metrics
grep '^queue_trace_attach_info' /tmp/metrics | grep --quiet 'family="fentry".*self_test="passed"'
begin 'refusals in another network namespace are seen'
refused() { sum queue_trace_host_outcomes_total 'verdict="syn_dropped"'; }
before=$(refused)
queue-trace demo >/tmp/demo 2>&1 || { cat /tmp/demo; false; }
more() { [ "$(refused)" -gt "$before" ]; }
comes 10 more
echo "syn_dropped: $before, then $(refused)"
begin 'an incident is recorded in its folder'
recorded() { [ -n "$(ls /var/lib/private/queue-trace/incidents/incident-*.jsonl.zst 2>/dev/null)" ]; }
comes 10 recorded
begin 'reload'
echo 'max-listeners = 7' >>/etc/queue-trace/agent.toml
systemctl reload queue-trace
read_again() { journalctl --unit=queue-trace | grep --quiet 'the settings were read again'; }
comes 10 read_again
[ "$(property MainPID)" = "$pid" ]
begin 'the watchdog is content'
sleep 12
[ "$(property MainPID)" = "$pid" ]
[ "$(property NRestarts)" = 0 ]
begin 'the watchdog ends a process that does not turn, and it is started again'
kill -STOP "$pid"
restarted() { [ "$(property NRestarts)" = 1 ] && [ "$(property ActiveState)" = active ]; }
comes 60 restarted
[ "$(property MainPID)" != "$pid" ]
ask /readyz | grep --quiet '^HTTP/1.1 200'
begin 'stop'
systemctl stop queue-trace
[ "$(property ActiveState)" = inactive ]
[ "$(property Result)" = success ]
begin 'end'
