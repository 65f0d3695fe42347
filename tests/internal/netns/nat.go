package netns

import (
	"fmt"
	"net/netip"
	"os/exec"
)

// BehindNAT lets packets in to a machine from one address and port alone, as a NAT before
// it would (address and port-dependent filtering, RFC 4787). nft is the program of that
// name.
func (n *NS) BehindNAT(nft string, public netip.AddrPort) error {
	rules := fmt.Sprintf("table inet nat { chain input { type filter hook input priority 0; "+
		"iifname %[1]s ip saddr != %[2]s drop; iifname %[1]s udp sport != %[3]d drop; }; }", UplinkInterface, public.Addr(), public.Port())
	if out, err := n.Run(exec.Command(nft, rules)); err != nil {
		return fmt.Errorf("a NAT before %q: %w: %s", n.name, err, out)
	}
	return nil
}
