package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"regexp"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// tunDevice is the kernel's side of a TUN link.
const tunDevice = "/dev/net/tun"

// userspace is wireguard-go in this process, over a TUN link that ends with
// it. Its configuration socket is the one that wgctrl and wg(8) know,
// /var/run/wireguard/<name>.sock.
type userspace struct {
	name string
	log  *slog.Logger

	device atomic.Pointer[wgdevice.Device] // nil while closed
	socket net.Listener
	served chan struct{} // closed when nobody accepts on socket any more
}

func (u *userspace) plane() spec.DataPlane { return spec.Userspace }

func (u *userspace) kind() string { return "tuntap" }

func (u *userspace) outlives() bool { return false }

func (u *userspace) open() (string, error) {
	// After somebody deleted the link, what it belonged to is still there.
	if err := u.close(); err != nil {
		return "", err
	}
	// Whose a link of that name is cannot be seen; ours went with our
	// predecessor. TUNSETIFF would even attach to another's persistent one.
	link, err := findLink(u.name, u.kind())
	if err != nil {
		return "", err
	}
	if link != nil {
		return "", taken(link)
	}
	if err := haveTUN(tunDevice); err != nil {
		return "", err
	}
	link0, err := tun.CreateTUN(u.name, wgdevice.DefaultMTU)
	if errors.Is(err, fs.ErrPermission) {
		return "", fmt.Errorf("making link %s over %s: %w (give the container CAP_NET_ADMIN and run it as root)", u.name, tunDevice, err)
	}
	if err != nil {
		return "", fmt.Errorf("making link %s over %s: %w", u.name, tunDevice, err)
	}
	socket, err := listenUAPI(u.name)
	if err != nil {
		return "", errors.Join(err, link0.Close())
	}
	u.socket, u.served = socket, make(chan struct{})
	device := wgdevice.NewDevice(link0, newBind(), wireguardLogger(u.log))
	u.device.Store(device)
	go serveUAPI(u.socket, device, u.served)
	return "wireguard-go over " + tunDevice, nil
}

// haveTUN tells a missing device node from one that the container must not
// open, which tun.CreateTUN's error does not.
func haveTUN(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("no TUN device: %w (mount it into the container; the node needs the tun module)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no TUN device: %w (the container runtime's device rules forbid it, as runc 1.2.0 to 1.2.3 do)", err)
	case err != nil:
		return fmt.Errorf("no TUN device: %w", err)
	}
	return f.Close()
}

// listenUAPI opens the configuration socket; a dead predecessor's is replaced.
// It does without ipc.UAPIListen, whose inotify watch ends the listener at a
// mere chmod of the socket and leaves goroutines behind.
func listenUAPI(name string) (net.Listener, error) {
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return nil, fmt.Errorf("opening the configuration socket of %s: %w (it needs a writable /var/run/wireguard, and no other process that serves the same name)", name, err)
	}
	l, err := net.FileListener(file) // has a descriptor of its own
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("opening the configuration socket of %s: %w", name, err)
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(true)
	}
	return l, nil
}

func serveUAPI(l net.Listener, d *wgdevice.Device, served chan<- struct{}) {
	defer close(served)
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		go d.IpcHandle(c)
	}
}

// vacant binds the port for a moment: wireguard-go lets go of the port that it
// has before it finds out that it cannot have another.
func (u *userspace) vacant(port uint16) error {
	for _, network := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return err
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

// bind waits for what wireguard-go does by itself, some time after it hears
// that the link is up, and learns whether it worked.
func (u *userspace) bind() error { return u.device.Load().Up() }

// read asks the device without the way around its socket.
func (u *userspace) read(visit func(*state.ObservedPeer)) (state.ObservedDevice, error) {
	device := u.device.Load()
	if device == nil {
		return state.ObservedDevice{}, fs.ErrClosed
	}
	r := dumpReader{visit: visit}
	if err := device.IpcGetOperation(&r); err != nil {
		return state.ObservedDevice{}, err
	}
	return r.result(), nil
}

// write changes the device without the way around its socket.
func (u *userspace) write(c wgtypes.Config) error {
	device := u.device.Load()
	if device == nil {
		return fs.ErrClosed
	}
	return ipcErrno(device.IpcSet(ipcText(c)))
}

func (u *userspace) close() error {
	device := u.device.Swap(nil)
	if device == nil {
		return nil
	}
	err := u.socket.Close() // removes the file too
	<-u.served
	device.Close() // and with the last descriptor the link goes
	return err
}

func (u *userspace) remove() error { return u.close() }

// steadyBind is wireguard-go's UDP sockets, behind a type of ours: for a plain
// conn.StdNetBind it follows the changes of routes, to send by another address where the
// way to a peer has become another one. For each change it asks the kernel for the way to
// each peer, and a route changes with every peer that comes, goes or moves: of fifty
// clients that moved, that took more of a replica's time than all else together. In a Pod
// there is one way out. Whoever has others answers by the address that the peer's last
// packet was for, as with IPv6, of which wireguard-go follows no routes; and where a
// handshake stays unanswered, it chooses anew.
type steadyBind struct{ conn.Bind }

// newBind returns wireguard-go's UDP sockets.
func newBind() conn.Bind { return steadyBind{conn.NewDefaultBind()} }

// Open is [conn.Bind]'s. It mends what conn.StdNetBind reports on kernels without IPv6:
// port 0 instead of the one that IPv4 is bound to.
func (b steadyBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	if err == nil && actual == 0 {
		actual = port
	}
	return fns, actual, err
}

// wireguardLogger hands what wireguard-go says to log, at debug level. It
// names peers by the ends of their public keys; but a line of configuration
// that it does not understand it quotes, so whatever looks like a key is
// redacted.
func wireguardLogger(log *slog.Logger) *wgdevice.Logger {
	keyLike := regexp.MustCompile(`[0-9A-Fa-f]{32,}|[0-9A-Za-z+/]{40,}=*`)
	say := func(severity string) func(string, ...any) {
		return func(format string, args ...any) {
			ctx := context.Background()
			if !log.Enabled(ctx, slog.LevelDebug) {
				return // wireguard-go says something for many a packet
			}
			text := keyLike.ReplaceAllString(fmt.Sprintf(format, args...), key.Redacted)
			log.LogAttrs(ctx, slog.LevelDebug, "wireguard-go", slog.String("severity", severity), slog.String("text", text))
		}
	}
	return &wgdevice.Logger{Verbosef: say("verbose"), Errorf: say("error")}
}
