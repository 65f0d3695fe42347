package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// testCache returns a directory of that name for what is built once and used
// again: below $VPN_GATEWAY_CACHE, or vpn-gateway in the user's cache.
func testCache(name string) (string, error) {
	root := os.Getenv("VPN_GATEWAY_CACHE")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("where to cache: %w; set VPN_GATEWAY_CACHE", err)
		}
		root = filepath.Join(cache, "vpn-gateway")
	}
	dir := filepath.Join(root, name)
	return dir, os.MkdirAll(dir, 0o755)
}
