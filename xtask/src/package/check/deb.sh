lintian --allow-root --pedantic --fail-on error,warning ./*.deb
dpkg --install ./*.deb
works "$(dpkg-query --show --showformat='${Version}' queue-trace)"
[ -z "$(dpkg --verify queue-trace)" ] || fail 'dpkg finds other files than it installed'
change_settings
dpkg --install --force-confold ./next/*.deb
settings_are_kept
systemctl enable --quiet queue-trace
dpkg --remove queue-trace
[ ! -e /usr/bin/queue-trace ] || fail 'the program is still there'
settings_are_kept
mkdir -p /var/lib/private/queue-trace/incidents
dpkg --purge queue-trace
rmdir --ignore-fail-on-non-empty /var/lib/private
nothing_is_left
