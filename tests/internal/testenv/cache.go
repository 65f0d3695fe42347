package testenv

import (
	"fmt"
	"os"
	"path/filepath"
)

// EnvCache names the environment variable that holds the directory for what is
// built or fetched once and used again; by default it is vpn-gateway in the
// user's cache.
const EnvCache = "VPN_GATEWAY_CACHE"

// Cache returns an existing directory of that name in the cache.
func Cache(name string) (string, error) {
	root := os.Getenv(EnvCache)
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("where to cache: %w; set %s", err, EnvCache)
		}
		root = filepath.Join(cache, "vpn-gateway")
	}
	dir := filepath.Join(root, name)
	return dir, os.MkdirAll(dir, 0o755)
}
