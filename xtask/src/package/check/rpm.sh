rpmlint --config rpmlint.toml ./*.rpm >/tmp/rpmlint || { cat /tmp/rpmlint; exit 1; }
grep --quiet ' 0 errors, 0 warnings' /tmp/rpmlint || { cat /tmp/rpmlint; exit 1; }
rpm --checksig ./*.rpm | grep --quiet 'digests OK'
rpm --query --package --requires ./*.rpm | grep --invert-match --quiet --extended-regexp \
    '^(/bin/sh|config\(queue-trace\).*|rpmlib\(.*)$' && fail 'it requires more than a shell'
rpm --query --package --scripts ./*.rpm | grep --quiet 'postinstall scriptlet'
# This root's other packages are not rpm's, so it cannot know that there is a shell.
rpm --force-debian --nodeps --install ./*.rpm
works "$(rpm --query --queryformat '%{VERSION}' queue-trace)"
rpm --verify --nodeps queue-trace || fail 'rpm finds other files than it installed'
change_settings
rpm --force-debian --nodeps --upgrade ./next/*.rpm
settings_are_kept
systemctl enable --quiet queue-trace
rpm --force-debian --erase queue-trace
# As rpm keeps settings that were changed, and those that an upgrade did not put in their place.
rm --recursive /etc/queue-trace
# Every system of rpm's has this folder from its base.
rmdir /usr/share/licenses
nothing_is_left
