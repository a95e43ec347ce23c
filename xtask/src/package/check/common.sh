# What both packages are tested with: in a clean root, as root, up to the first failure.
cd /given
fail() { echo "error: $*" >&2; exit 1; }
# Everything that is there, but what package managers and the manual's index write about it.
everything() {
    find / -xdev \( -path /given -o -path /run -o -path /proc -o -path /sys -o -path /dev -o -path /tmp \
        -o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /usr/lib/sysimage -o -path /root \
        -o -path /var/cache -o -path /var/log \) -prune -o -print | sort
}
before=$(everything)
# The installed program, its pages, its unit and its agent.
works() {
    queue-trace --version | grep --fixed-strings --quiet "$1" || fail 'not this version'
    [ -s /usr/share/doc/queue-trace/third-party-licenses.txt ] || fail 'no licences of others'
    man --where queue-trace queue-trace-agent >/dev/null
    systemd-analyze verify /usr/lib/systemd/system/queue-trace.service
    ! systemctl is-enabled --quiet queue-trace || fail 'enabled by the installation'
    systemctl enable --quiet queue-trace
    queue-trace agent --once 1s --config /etc/queue-trace/agent.toml >/tmp/metrics
    grep --quiet '^queue_trace_build_info' /tmp/metrics || fail 'the agent prints no metrics'
    systemctl disable --quiet queue-trace
}
own='# A line of the administrator.'
change_settings() { echo "$own" >>/etc/queue-trace/agent.toml; }
settings_are_kept() {
    grep --quiet "^$own" /etc/queue-trace/agent.toml || fail 'an upgrade changed the settings'
}
nothing_is_left() {
    diff <(echo "$before") <(everything) || fail 'the removal left something'
}
