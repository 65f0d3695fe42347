package device

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// ipcText is a change in words of the configuration protocol
// (https://www.wireguard.com/xplatform/), as wgctrl would send it. It stands in for
// wgctrl where the device is in this process: a socket between two of our goroutines
// costs four turns of the scheduler, and each of them tens of milliseconds when many
// peers come to this replica at once and all processors are busy with their packets.
func ipcText(c wgtypes.Config) string {
	var b strings.Builder
	if c.PrivateKey != nil {
		fmt.Fprintf(&b, "private_key=%s\n", inHex(*c.PrivateKey))
	}
	if c.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.ListenPort)
	}
	for i := range c.Peers {
		p := &c.Peers[i]
		fmt.Fprintf(&b, "public_key=%s\n", inHex(p.PublicKey))
		if p.Remove {
			b.WriteString("remove=true\n")
		}
		if p.UpdateOnly {
			b.WriteString("update_only=true\n")
		}
		if p.PresharedKey != nil {
			fmt.Fprintf(&b, "preshared_key=%s\n", inHex(*p.PresharedKey))
		}
		if p.Endpoint != nil {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		if p.PersistentKeepaliveInterval != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		for j := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", &p.AllowedIPs[j])
		}
	}
	return b.String()
}

func inHex(k [key.Len]byte) string { return hex.EncodeToString(k[:]) }

// ipcErrno is the errno of what wireguard-go refused. Its own text may quote what it
// was given.
func ipcErrno(err error) error {
	var refused *wgdevice.IPCError
	if errors.As(err, &refused) {
		return unix.Errno(-refused.ErrorCode())
	}
	return err
}
