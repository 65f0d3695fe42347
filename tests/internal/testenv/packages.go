package testenv

// Package is a Debian package that the tests, the demos or the benchmark need,
// with one of the commands that it brings, by which its presence is known.
type Package struct {
	Name    string // Debian 12 and later, Ubuntu 22.04 and later
	Command string
	For     string // which make targets ask for it
}

// Packages lists the Debian packages that `make test`, `make e2e`, `make demo`
// and `make demo-cluster` need beside Go and make. `make deps` installs them and
// a missing tool's message names them, so that this is the only list.
func Packages() []Package {
	return []Package{
		{Name: "iproute2", Command: "ip", For: "test"},
		{Name: "nftables", Command: "nft", For: "test"},
		{Name: "wireguard-tools", Command: "wg", For: "test"},
		{Name: "wireguard-go", Command: "wireguard-go", For: "test"},
		{Name: "iputils-ping", Command: "ping", For: "test"},
		{Name: "conntrack", Command: "conntrack", For: "test"},
		{Name: "containerd", Command: "containerd", For: "e2e"},
		{Name: "runc", Command: "runc", For: "e2e"},
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
