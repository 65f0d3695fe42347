package device

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// wgctrl itself is asked what it would send.
func TestIPCTextIsThatOfWgctrl(t *testing.T) {
	need(t)
	private, psk := wgtypes.Key(key.GeneratePrivate().Bytes()), wgtypes.Key(key.GeneratePreshared().Bytes())
	a, b := wgtypes.Key(key.GeneratePrivate().Public()), wgtypes.Key(key.GeneratePrivate().Public())
	port, on, off := 51820, 25*time.Second, time.Duration(0)
	for _, tt := range []struct {
		name string
		c    wgtypes.Config
	}{
		{"nothing", wgtypes.Config{}},
		{"private key", wgtypes.Config{PrivateKey: &private}},
		{"port", wgtypes.Config{ListenPort: &port}},
		{"peers", wgtypes.Config{Peers: []wgtypes.PeerConfig{
			{PublicKey: a, Remove: true},
			{
				PublicKey: a, PresharedKey: &psk, Endpoint: &net.UDPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4500}, PersistentKeepaliveInterval: &on,
				AllowedIPs: []net.IPNet{ipNet("10.1.0.0/16"), ipNet("fd00::/64")},
			},
			{PublicKey: b, UpdateOnly: true, Endpoint: &net.UDPAddr{IP: net.ParseIP("fe80::1"), Port: 1, Zone: "eth0"}, PersistentKeepaliveInterval: &off},
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff("set=1\n"+sentByWgctrl(t, tt.c), "set=1\n"+ipcText(tt.c)); diff != "" {
				t.Errorf("text (-wgctrl +ours):\n%s", diff)
			}
		})
	}
}

// sentByWgctrl plays a device whose socket wgctrl finds.
func sentByWgctrl(t *testing.T, c wgtypes.Config) string {
	t.Helper()
	const name = "ipctest"
	dir := "/var/run/wireguard"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, name+".sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan string, 1)
	go func() {
		defer close(sent)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			lines := bufio.NewScanner(conn)
			var text strings.Builder
			for lines.Scan() && lines.Text() != "" {
				text.WriteString(lines.Text() + "\n")
			}
			fmt.Fprint(conn, "errno=0\n\n")
			_ = conn.Close()
			if rest, isSet := strings.CutPrefix(text.String(), "set=1\n"); isSet {
				sent <- rest
				return
			}
		}
	}()
	if err := newControl(t).ConfigureDevice(name, c); err != nil {
		t.Fatal(err)
	}
	return <-sent
}

func TestIPCErrno(t *testing.T) {
	need(t)
	u := open(t, spec.Userspace).device(key.Blue).backend.(*userspace)
	refused := u.device.Load().IpcSet("listen_port=many\n")
	other := errors.New("connection reset")
	for _, tt := range []struct {
		name      string
		err, want error
	}{
		{"none", nil, nil},
		{"of wireguard-go", refused, unix.EINVAL},
		{"wrapped", fmt.Errorf("changing: %w", refused), unix.EINVAL},
		{"something else", other, other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ipcErrno(tt.err), cmpopts.EquateErrors()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}
