package spec

import (
	"errors"
	"net"
	"net/netip"
	"regexp"
	"strconv"
)

// Endpoint is a host and a UDP port. The host is an address or a DNS name.
// Comparable; the zero value means 'none'.
type Endpoint struct {
	Host string // without brackets
	Port uint16
}

// ParseEndpoint reads "203.0.113.1:51820", "[2001:db8::1]:51820" or
// "vpn.example.com:51820".
func ParseEndpoint(text string) (Endpoint, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" {
		return Endpoint{}, errors.New("not host:port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Endpoint{}, errors.New("port is not a number from 1 to 65535")
	}
	if _, err := netip.ParseAddr(host); err != nil && !dnsName.MatchString(host) {
		return Endpoint{}, errors.New("host is neither an address nor a DNS name")
	}
	return Endpoint{Host: host, Port: uint16(n)}, nil
}

// dnsName is RFC 1123 section 2.1 with one alphabetic label at least, so that
// a mistyped IPv4 address does not pass for a name.
var dnsName = regexp.MustCompile(`^(?i:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.?$`)

// IsZero reports whether there is no endpoint.
func (e Endpoint) IsZero() bool { return e == Endpoint{} }

// String returns host:port, an IPv6 host in brackets.
func (e Endpoint) String() string {
	if e.IsZero() {
		return ""
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

// AddrPort returns the endpoint where the host is an address, with ok false
// where it is a name that needs to be resolved.
func (e Endpoint) AddrPort() (ap netip.AddrPort, ok bool) {
	addr, err := netip.ParseAddr(e.Host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), e.Port), true
}
