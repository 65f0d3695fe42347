// Package layout says where things lie on this machine.
package layout

import (
	"fmt"
	"path/filepath"
)

// RuntimeDir is where the record of the running cluster lies. It is the same
// for every caller, whatever their cache: there is one cluster on a machine,
// since the names of its network namespaces are fixed. A reboot clears it.
const RuntimeDir = "/run/vpn-gateway"

// Dirs are the places of one user's cache.
type Dirs struct {
	// Root is where everything of the cluster lies, built or running.
	Root string
}

// FromEnv finds the cache: VPN_GATEWAY_CACHE, else vpn-gateway in
// XDG_CACHE_HOME, else in ~/.cache. getenv is os.Getenv or a stand-in for it.
func FromEnv(getenv func(string) string) (Dirs, error) {
	cache := getenv("VPN_GATEWAY_CACHE")
	if cache == "" {
		if xdg := getenv("XDG_CACHE_HOME"); xdg != "" {
			cache = filepath.Join(xdg, "vpn-gateway")
		} else if home := getenv("HOME"); home != "" {
			cache = filepath.Join(home, ".cache", "vpn-gateway")
		}
	}
	if !filepath.IsAbs(cache) {
		return Dirs{}, fmt.Errorf("cache directory %q is not absolute: set VPN_GATEWAY_CACHE, XDG_CACHE_HOME or HOME", cache)
	}
	return Dirs{Root: filepath.Join(cache, "cluster")}, nil
}

// Parts holds what was built, one directory for each part and hash of its inputs.
func (d Dirs) Parts() string { return filepath.Join(d.Root, "parts") }

// Debian holds unpacked packages of the distribution, for tools that this machine lacks.
func (d Dirs) Debian() string { return filepath.Join(d.Root, "debian") }

// State holds the running cluster: keys, logs and disks of its machines.
// Taking the cluster down removes it.
func (d Dirs) State() string { return filepath.Join(d.Root, "state") }
