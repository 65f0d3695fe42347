package preflight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/cgroup"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
)

const (
	runSpace  = 2 << 30
	runMemory = 1536 << 20 // of two nodes with a small load: 1.7 GB, of which the page cache can lend
)

// Root refuses whoever is not root.
func Root() error {
	var l list
	if os.Geteuid() != 0 {
		l.add("not root", "machines are made of namespaces, mounts and control groups", "run it as root: sudo -E env PATH=$PATH make …")
	}
	return l.err()
}

// Run checks what running the cluster needs.
func Run(ctx context.Context, dirs layout.Dirs) error {
	if err := Root(); err != nil {
		return err
	}
	var l list
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	for _, c := range cgroup.Missing(hierarchies) {
		l.add("no control group controller "+c, "the kubelet limits Pods by it", "mount it below /sys/fs/cgroup, or enable it on the kernel's command line (cgroup_enable="+c+")")
	}
	for _, h := range hierarchies {
		if unix.Access(h.Mount, unix.W_OK) != nil {
			l.add(h.Mount+" is read-only", "every node has a control group in it", "in a container: give it a writable control group file system (--privileged, --cgroupns=host)")
		}
	}
	if _, err := exec.LookPath("mount"); err != nil {
		l.add("no mount in PATH", "the kubelet mounts volumes with it", "on Debian: apt-get install mount")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		l.add("no nft in PATH", "kube-proxy makes Services with it", "on Debian: apt-get install nftables")
	}
	if err := space(dirs.Root, runSpace); err != nil {
		l.add("too little disk space", err.Error(), "make room, or set VPN_GATEWAY_CACHE to a larger disk")
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		if total := info.Totalram * uint64(info.Unit); total < runMemory {
			l.add("too little memory", fmt.Sprintf("%d MiB, and two nodes need about 1,700", total>>20), "use a larger machine")
		}
	}
	l = append(l, tryKernel(ctx, dirs.Root)...)
	return l.err()
}

// tryKernel does once, in namespaces that vanish with the thread, what the
// cluster does all the time.
func tryKernel(ctx context.Context, dir string) []Problem {
	done := make(chan list)
	go func() {
		runtime.LockOSThread() // for good: the namespaces end with this goroutine's thread
		var l list
		defer func() { done <- l }()
		const spaces = unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		if err := unix.Unshare(spaces); err != nil {
			l.add("cannot make namespaces", "every machine is made of them: "+err.Error(), "in a container: run it with --privileged; else the kernel needs CONFIG_NAMESPACES, CONFIG_NET_NS")
			return
		}
		if err := tryOverlay(dir); err != nil {
			l.add("cannot mount an overlay in "+dir, "container images are overlays: "+err.Error(), "the kernel needs CONFIG_OVERLAY_FS, and the cache must lie on a plain disk: set VPN_GATEWAY_CACHE to one (a container's own file system is an overlay itself)")
		}
		if err := tryLinks(); err != nil {
			l.add("cannot make network links", "machines and Pods are connected by bridge and veth: "+err.Error(), "the kernel needs CONFIG_BRIDGE and CONFIG_VETH: modprobe bridge veth")
		}
		if err := tryNFT(ctx); err != nil {
			l.add("cannot make nftables rules", "Services are such rules: "+err.Error(), "the kernel needs CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB: modprobe nf_tables nft_masq nft_fib_inet")
		}
		if _, err := os.Stat("/sys/class/misc/tun"); errors.Is(err, fs.ErrNotExist) {
			if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
				l.add("no TUN devices", "the gateway's userspace data plane is one: "+err.Error(), "the kernel needs CONFIG_TUN: modprobe tun")
			} else {
				f.Close()
			}
		}
	}()
	return <-done
}

func tryOverlay(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(dir, "try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return err
	}
	return unix.Unmount(merged, 0)
}

func tryLinks() error {
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "try"}}); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "try0"}, PeerName: "try1"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	return nil
}

// tryNFT makes a table with the expressions that kube-proxy and the CNI
// plugins rely on.
func tryNFT(ctx context.Context) error {
	const rules = `table ip try {
	map services { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain nat { type nat hook postrouting priority srcnat; ct state new ip saddr 192.0.2.1 masquerade; }
	chain pre { type nat hook prerouting priority dstnat; fib daddr type local ip daddr . meta l4proto . th dport vmap @services; numgen random mod 2 vmap { 0 : accept, 1 : accept }; }
}`
	path, err := exec.LookPath("nft")
	if err != nil {
		return nil // its absence is reported
	}
	cmd := exec.CommandContext(ctx, path, "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
