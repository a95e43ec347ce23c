# Packages for another architecture: what can be said of them without starting what is in them.
cd /given
fail() { echo "error: $*" >&2; exit 1; }
checked=0
# The program and the licences of others, below the folder.
whole() {
    [ -s "$1/usr/share/doc/queue-trace/third-party-licenses.txt" ] || fail "$2: no licences of others"
    [ -x "$1/usr/bin/queue-trace" ] || fail "$2: no program"
    checked=$((checked + 1))
}
for package in ./*.deb; do
    [ -e "$package" ] || continue
    lintian --allow-root --pedantic --fail-on error,warning "$package"
    machine=$(dpkg-deb --field "$package" Architecture)
    case " $names " in *" $machine "*) ;; *) fail "$package is for $machine" ;; esac
    dpkg-deb --extract "$package" /tmp/deb
    whole /tmp/deb "$package"
done
for package in ./*.rpm; do
    [ -e "$package" ] || continue
    rpmlint --config rpmlint.toml "$package" >/tmp/rpmlint || { cat /tmp/rpmlint; exit 1; }
    grep --quiet ' 0 errors, 0 warnings' /tmp/rpmlint || { cat /tmp/rpmlint; exit 1; }
    rpm --checksig "$package" | grep --quiet 'digests OK' || fail "$package: digests"
    machine=$(rpm --query --package --queryformat '%{ARCH}' "$package")
    case " $names " in *" $machine "*) ;; *) fail "$package is for $machine" ;; esac
    mkdir -p /tmp/rpm
    rpm2archive - <"$package" | tar -xzC /tmp/rpm
    whole /tmp/rpm "$package"
done
[ "$checked" -gt 0 ] || fail 'nothing was checked'
