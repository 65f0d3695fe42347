// Package wgclient runs stock WireGuard clients in network namespaces: what
// `wg-quick up` would make of a client's file, with Debian's wireguard-go (or the
// kernel's WireGuard) and `wg`, the addresses and routes set by netlink.
package wgclient

import (
	"bufio"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Config is a client's file, in the form of wg-quick(8).
type Config struct {
	PrivateKey Secret
	Addresses  []netip.Prefix
	DNS        []netip.Addr
	MTU        int // bytes; 0: 1420
	ListenPort int // UDP; 0: any
	Peers      []Peer
}

// Peer is a [Peer] section: for a client, the gateway.
type Peer struct {
	PublicKey           string // base64
	PresharedKey        Secret
	Endpoint            string // host:port; empty: it calls us
	AllowedIPs          []netip.Prefix
	PersistentKeepalive int // seconds; 0: off
}

// Parse reads a wg-quick file. A line that it doesn't know is an error, so that
// no setting is passed over. The keys are recorded for the search for leaks.
func Parse(text string) (Config, error) {
	var c Config
	section := ""
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = strings.ToLower(line)
			if section == "[peer]" {
				c.Peers = append(c.Peers, Peer{})
			}
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		if err := c.set(section, strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)); err != nil {
			// The value is not shown: it may be a key.
			return Config{}, fmt.Errorf("client file, line %d: %s %s: %w", n, section, strings.TrimSpace(name), err)
		}
	}
	return c, lines.Err()
}

func (c *Config) set(section, name, value string) (err error) {
	if section == "[peer]" && len(c.Peers) > 0 {
		return c.Peers[len(c.Peers)-1].set(name, value)
	}
	if section != "[interface]" {
		return fmt.Errorf("unknown section")
	}
	switch name {
	case "privatekey":
		c.PrivateKey, err = ParseSecret(value)
	case "address":
		c.Addresses, err = parseList(value, parsePrefix)
	case "dns":
		c.DNS, err = parseList(value, netip.ParseAddr)
	case "mtu":
		c.MTU, err = strconv.Atoi(value)
	case "listenport":
		c.ListenPort, err = strconv.Atoi(value)
	default:
		err = fmt.Errorf("unknown setting")
	}
	return err
}

func (p *Peer) set(name, value string) (err error) {
	switch name {
	case "publickey":
		p.PublicKey = value
	case "presharedkey":
		p.PresharedKey, err = ParseSecret(value)
	case "endpoint":
		p.Endpoint = value
	case "allowedips":
		p.AllowedIPs, err = parseList(value, parsePrefix)
	case "persistentkeepalive":
		if value != "off" {
			p.PersistentKeepalive, err = strconv.Atoi(value)
		}
	default:
		err = fmt.Errorf("unknown setting")
	}
	return err
}

// parsePrefix reads 10.8.0.2/24; a lone address is a network of itself.
func parsePrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

func parseList[T any](text string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for item := range strings.SplitSeq(text, ",") {
		v, err := parse(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// setconf returns what `wg setconf` reads, which is what `wg-quick strip` makes
// of the file. It holds the keys: give it to wg alone.
func (c Config) setconf(fwmark int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nPrivateKey = %s\n", c.PrivateKey.Reveal())
	if c.ListenPort != 0 {
		fmt.Fprintf(&b, "ListenPort = %d\n", c.ListenPort)
	}
	if fwmark != 0 {
		fmt.Fprintf(&b, "FwMark = %d\n", fwmark)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\n", p.PublicKey)
		if !p.PresharedKey.IsZero() {
			fmt.Fprintf(&b, "PresharedKey = %s\n", p.PresharedKey.Reveal())
		}
		if p.Endpoint != "" {
			fmt.Fprintf(&b, "Endpoint = %s\n", p.Endpoint)
		}
		var allowed []string
		for _, a := range p.AllowedIPs {
			allowed = append(allowed, a.String())
		}
		if len(allowed) > 0 {
			fmt.Fprintf(&b, "AllowedIPs = %s\n", strings.Join(allowed, ", "))
		}
		if p.PersistentKeepalive != 0 {
			fmt.Fprintf(&b, "PersistentKeepalive = %d\n", p.PersistentKeepalive)
		}
	}
	return b.String()
}
