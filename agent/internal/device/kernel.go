package device

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// kernel is WireGuard as the kernel has it (drivers/net/wireguard). Its links
// outlive the process that made them.
type kernel struct {
	name    string
	control *wgctrl.Client // nil before the first open
}

func (k *kernel) plane() spec.DataPlane { return spec.Kernel }

func (k *kernel) kind() string { return "wireguard" }

func (k *kernel) outlives() bool { return true }

func (k *kernel) open() (string, error) {
	what, err := k.link()
	if err != nil || k.control != nil {
		return what, err
	}
	// Not before: the kernel's part of wgctrl is there once the module is, and
	// making the link loads it.
	if k.control, err = wgctrl.New(); err != nil {
		return "", fmt.Errorf("wgctrl: %w", err)
	}
	return what, nil
}

// link takes over the link that is there, or makes one, and says which.
func (k *kernel) link() (string, error) {
	link, err := findLink(k.name, k.kind())
	if err != nil {
		return "", err
	}
	if link != nil {
		return "took over the kernel's WireGuard link that was there", nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = k.name
	err = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return "", fmt.Errorf("the node's kernel has no WireGuard (load its module wireguard): %w", err)
	case errors.Is(err, unix.EPERM):
		return "", fmt.Errorf("making link %s: %w (give the container CAP_NET_ADMIN and run it as root)", k.name, err)
	case err != nil:
		return "", fmt.Errorf("making link %s of type wireguard: %w", k.name, err)
	}
	return "the node's kernel has WireGuard", nil
}

func (k *kernel) read(visit func(*state.ObservedPeer)) (state.ObservedDevice, error) {
	dump, err := k.control.Device(k.name)
	if errors.Is(err, fs.ErrNotExist) {
		return state.ObservedDevice{}, fmt.Errorf("no WireGuard device of that name answers: %w", err)
	}
	if err != nil {
		return state.ObservedDevice{}, err
	}
	return eachObserved(dump, visit), nil
}

func (k *kernel) write(c wgtypes.Config) error { return k.control.ConfigureDevice(k.name, c) }

// vacant leaves it to the kernel, which keeps the port it has where it cannot
// have another (set_port, drivers/net/wireguard/netlink.c).
func (k *kernel) vacant(uint16) error { return nil }

// bind has nothing to do: the kernel binds when the link goes up.
func (k *kernel) bind() error { return nil }

func (k *kernel) close() error { return k.control.Close() }

func (k *kernel) remove() error {
	link, err := findLink(k.name, k.kind())
	if err != nil || link == nil {
		return err
	}
	return netlink.LinkDel(link)
}
