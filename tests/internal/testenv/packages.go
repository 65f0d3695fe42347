package testenv

// Package is a Debian package that the tests, the demos or the benchmark need,
// with one of the commands that it brings, by which its presence is known.
type Package struct {
	Name    string // Debian 12 and later, Ubuntu 22.04 and later
	Command string
	// VM is set where only the tests in a virtual machine need it.
	VM bool
}

// Packages lists the Debian packages that the tests, the demos and the benchmark
// need beside Go and make. `make deps` installs them and a missing tool's message
// names them, so that this is the only list.
func Packages() []Package {
	return []Package{
		{Name: "iproute2", Command: "ip"},
		{Name: "iputils-ping", Command: "ping"},
		{Name: "nftables", Command: "nft"},
		{Name: "qemu-system-x86", Command: "qemu-system-x86_64", VM: true},
		{Name: "wireguard-go", Command: "wireguard-go"},
		{Name: "wireguard-tools", Command: "wg"},
	}
}

// PackageOf returns the Debian package that brings command, or "" when the
// command is none of the listed ones.
func PackageOf(command string) string {
	for _, p := range Packages() {
		if p.Command == command {
			return p.Name
		}
	}
	return ""
}
