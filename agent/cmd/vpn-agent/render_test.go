package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

func TestGrantText(t *testing.T) {
	tests := []struct {
		want  string
		grant state.Grant
	}{
		{"10.0.0.0-10.0.0.254", state.Grant{First: netip.MustParseAddr("10.0.0.0"), Last: netip.MustParseAddr("10.0.0.254"), LastProtocol: 255, LastPort: 65535}},
		{"::/0", state.Grant{First: netip.MustParseAddr("::"), Last: netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), LastProtocol: 255, LastPort: 65535}},
		{"10.0.0.0/24", state.Grant{First: netip.MustParseAddr("10.0.0.0"), Last: netip.MustParseAddr("10.0.0.255"), LastProtocol: 255, LastPort: 65535}},
		{"10.0.0.1 tcp 443", state.Grant{
			First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.1"),
			FirstProtocol: 6, LastProtocol: 6, FirstPort: 443, LastPort: 443,
		}},
		{"10.0.0.1 udp 1-1023", state.Grant{
			First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.1"),
			FirstProtocol: 17, LastProtocol: 17, FirstPort: 1, LastPort: 1023,
		}},
		{"10.0.0.1 icmp", state.Grant{
			First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.1"),
			FirstProtocol: 1, LastProtocol: 1, LastPort: 65535,
		}},
		{"fd00::1 ipv6-icmp", state.Grant{
			First: netip.MustParseAddr("fd00::1"), Last: netip.MustParseAddr("fd00::1"),
			FirstProtocol: 58, LastProtocol: 58, LastPort: 65535,
		}},
		// What is left of 'any' once tcp was cut out of it.
		{"10.0.0.1 protocols 7-255", state.Grant{
			First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.1"),
			FirstProtocol: 7, LastProtocol: 255, LastPort: 65535,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, grantText(tt.grant)); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}
