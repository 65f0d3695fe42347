package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/clientconf"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/watch"
)

// newPeersFile is where a peer that is being made stands among the gateway's
// files. It sorts after every name that a Secret can have, so that a conflict
// with a peer that is there is the new one's fault.
const newPeersFile = spec.PeersDir + "~new.yaml"

// presharedSecretName is for gateways that have no Secret of pre-shared keys.
const presharedSecretName = "vpn-gateway-psk"

func newPeerCommand(env environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peer",
		Short: "Make peers and their files",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPeerNewCommand(env), newPeerUpdateCommand(env))
	return cmd
}

// peerOptions are texts where they are parsed by us: all that is wrong with
// them is said at once.
type peerOptions struct {
	name, configDir                     string
	serverPublicKey, endpoint           string
	addresses, allowedIPs, dns          []string
	mtu                                 int
	keepalive                           uint16
	presharedKey, noQR                  bool
	output, outputDir                   string
	setAllowedIPs, setDNS, setKeepalive bool // given on the command line
}

func newPeerNewCommand(env environment) *cobra.Command {
	var o peerOptions
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Make a client: key pair, wg-quick file, QR code, entry for the values",
		Long: "Make a client called NAME. Its private key is made here and written nowhere but where the output goes.\n\n" +
			"What the client has to know of its gateway comes from the gateway's configuration directory (--config-dir), or from " +
			"flags, which decide over it. Inside the gateway's container the directory is at hand, so that the first example is " +
			"all that it takes.\n\n" +
			"From the directory the client gets the first free address of every pool, and as AllowedIPs routing.routes, or, where " +
			"that is empty, whatever routing.allowedDestinations let it reach. An address is free until its peer is in the " +
			"gateway's files: add one peer before you make the next.\n\n" +
			"On a terminal everything is shown, a QR code of the client's file included. Otherwise standard output is the " +
			"client's file and nothing else, ready for '> alice.conf', and standard error says what remains to be done, with no " +
			"secret in it. --output json is for scripts: one object with name, publicKey, config (the client's file), peer (the " +
			"entry for the list peers) and presharedKey, where there is one. --output-dir writes files instead, and prints no secret.",
		Example: "  kubectl exec -it deployment/vpn-gateway -- /vpn-agent peer new alice\n" +
			"  kubectl exec deployment/vpn-gateway -- /vpn-agent peer new alice > alice.conf\n" +
			"  vpn-agent peer new alice --server-public-key=… --endpoint=vpn.example.com:51820 --address=10.8.0.2 --allowed-ips=10.0.0.0/8",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("peer new takes one NAME, not %d; such as alice-laptop", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			changed := cmd.Flags().Changed
			o.name = args[0]
			o.setAllowedIPs, o.setDNS, o.setKeepalive = changed("allowed-ips"), changed("dns"), changed("keepalive")
			return newPeer(env, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.configDir, "config-dir", "", "the gateway's configuration directory; default: "+defaultConfigDir+" where that exists")
	f.StringVar(&o.serverPublicKey, "server-public-key", "", "the gateway's public key; 'vpn-agent probe' shows it")
	f.StringVar(&o.endpoint, "endpoint", "", "where the client connects to, host:port")
	f.StringSliceVar(&o.addresses, "address", nil, "address of the client inside the tunnel; one for each family")
	f.StringSliceVar(&o.allowedIPs, "allowed-ips", nil, "networks that the client sends into the tunnel; 0.0.0.0/0 is everything")
	f.StringSliceVar(&o.dns, "dns", nil, "DNS servers that the client uses while the tunnel is up")
	f.IntVar(&o.mtu, "mtu", 0, "MTU of the client's device in bytes; default: server.mtu, else the client finds one")
	f.Uint16Var(&o.keepalive, "keepalive", clientconf.Keepalive, "seconds between keepalives of the client; 0 is off")
	f.BoolVar(&o.presharedKey, "preshared-key", false, "make a pre-shared key too, and the manifest of a Secret for the gateway to read it from")
	f.BoolVar(&o.noQR, "no-qr", false, "show no QR code")
	f.StringVar(&o.output, "output", "text", "text or json")
	f.StringVar(&o.outputDir, "output-dir", "", "write NAME.conf, NAME.values.yaml and, with a pre-shared key, NAME.secret.yaml to this directory; files that exist are not overwritten")
	return cmd
}

func newPeer(env environment, o peerOptions) error {
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("--output %q is unknown; use text or json", o.output)
	}
	if o.output == "json" && o.outputDir != "" {
		return errors.New("--output json and --output-dir exclude each other: the one prints, the other writes files")
	}
	if o.configDir == "" && isDir(defaultConfigDir) {
		o.configDir = defaultConfigDir
	}
	files := spec.Files{}
	client := clientconf.Client{Keepalive: clientconf.Keepalive}
	var problems problems
	if o.configDir != "" {
		var err error
		if files, client, err = readGateway(env, o); err != nil {
			return err
		}
	}
	problems.apply(o, &client)
	client.Name, client.PrivateKey = o.name, key.GeneratePrivate()
	if o.presharedKey {
		client.PresharedKey = key.GeneratePreshared()
	}
	problems.missing(client, o.configDir)
	problems.judge(o.configDir != "", files, &client)
	if len(problems) > 0 {
		return problems.error(o)
	}
	return showPeer(env, o, client, presharedSecretOf(files))
}

// readGateway returns the gateway's files and a client that knows what they say.
func readGateway(env environment, o peerOptions) (spec.Files, clientconf.Client, error) {
	files, err := watch.Read(o.configDir)
	if err != nil {
		return nil, clientconf.Client{}, fmt.Errorf("--config-dir: %w", err)
	}
	if _, ok := files[spec.PrivateKeyFile]; !ok && o.serverPublicKey != "" {
		// The files as they lie in a repository, without the Secret. Nothing
		// but the public key is needed of it, and that is given.
		files[spec.PrivateKeyFile] = []byte(key.GeneratePrivate().Reveal())
	}
	snapshot, err := spec.Load(files)
	if err != nil {
		return nil, clientconf.Client{}, printFaults(env, o.configDir, err)
	}
	return files, clientconf.ForGateway(snapshot, time.Now()), nil
}

// presharedSecretOf returns the Secret whose pre-shared keys the gateway reads.
func presharedSecretOf(files spec.Files) string {
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if dir, found := strings.CutPrefix(path.Dir(file)+"/", spec.PresharedDir); found && dir != "" {
			return path.Clean(dir)
		}
	}
	return presharedSecretName
}

// problems are lines about flags, each with its fix.
type problems []string

func (p *problems) add(flag, format string, args ...any) {
	*p = append(*p, flag+": "+fmt.Sprintf(format, args...))
}

// apply parses the flags that were given into the client.
func (p *problems) apply(o peerOptions, c *clientconf.Client) {
	if o.serverPublicKey != "" {
		k, err := key.ParsePublic(o.serverPublicKey)
		if err != nil { // not quoted: it may be most of a private key
			p.add("--server-public-key", "%v; give what 'vpn-agent probe' shows, or 'wg show wg0 public-key'", err)
		}
		c.ServerPublicKey = k
	}
	if o.endpoint != "" {
		e, err := spec.ParseEndpoint(o.endpoint)
		if err != nil {
			p.add("--endpoint", "%q: %v; write it like 203.0.113.1:51820 or [2001:db8::1]:51820", o.endpoint, err)
		}
		c.Endpoint = e
	}
	if len(o.addresses) > 0 {
		c.Addresses = parseEach(p, "--address", o.addresses, netip.ParseAddr, "an address, such as 10.8.0.2, without a length")
	}
	if o.setAllowedIPs {
		c.AllowedIPs = parseEach(p, "--allowed-ips", o.allowedIPs, parseNetwork, "a network, such as 10.0.0.0/8")
	}
	if o.setDNS {
		c.DNS = parseEach(p, "--dns", o.dns, netip.ParseAddr, "an address, such as 10.96.0.10")
	}
	if o.mtu != 0 {
		c.MTU = o.mtu
		if o.mtu < 576 || o.mtu > 65535 { // RFC 791: the least that a host takes, and the most
			p.add("--mtu", "%d is out of range; use 576 to 65535, or 0 to let the client find one", o.mtu)
		}
	}
	if o.setKeepalive {
		c.Keepalive = o.keepalive
	}
}

func parseEach[T any](p *problems, flag string, texts []string, parse func(string) (T, error), want string) []T {
	out := make([]T, 0, len(texts))
	for _, text := range texts {
		v, err := parse(strings.TrimSpace(text))
		if err != nil {
			p.add(flag, "%q is not %s", text, want)
			continue
		}
		out = append(out, v)
	}
	return out
}

// parseNetwork masks, and takes an address for the network of that one host.
func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Prefix(a.BitLen())
	}
	n, err := netip.ParsePrefix(text)
	return n.Masked(), err
}

// missing reports what neither flags nor files have said. A flag with a fault
// of its own is not missing.
func (p *problems) missing(c clientconf.Client, configDir string) {
	need := func(ok bool, flag, give string) {
		if !ok && !slices.ContainsFunc(*p, func(line string) bool { return strings.HasPrefix(line, flag+":") }) {
			p.add(flag, "missing; %s", give)
		}
	}
	need(!c.ServerPublicKey.IsZero(), "--server-public-key", "give the gateway's public key, as 'vpn-agent probe' shows it")
	if configDir != "" {
		need(!c.Endpoint.IsZero(), "--endpoint", "give host:port, or set server.publicEndpoint in "+spec.GatewayFile)
		need(len(c.Addresses) > 0, "--address", "no pool of server.addresses has a free one left; widen a pool")
	} else {
		need(!c.Endpoint.IsZero(), "--endpoint", "give where clients reach the gateway, as host:port")
		need(len(c.Addresses) > 0, "--address", "give the client an address out of the gateway's pool, such as 10.8.0.2")
	}
	need(len(c.AllowedIPs) > 0, "--allowed-ips", "give the networks that the client reaches through the tunnel, such as 10.0.0.0/8; 0.0.0.0/0 is everything")
}

// judge has the new peer read as a part of the gateway's files, so that what
// the gateway would refuse is refused here. A pre-shared key that waits there
// for a peer of that name goes into the client.
func (p *problems) judge(known bool, files spec.Files, c *clientconf.Client) {
	files = maps.Clone(files)
	files[newPeersFile] = []byte(c.Entry().PeersYAML())
	snapshot, err := spec.Load(files)
	var faults spec.Faults
	if errors.As(err, &faults) {
		for _, f := range faults {
			flag, ours := flagOf(f.Path)
			// Without the gateway's files only the name can be judged, and that
			// there is no address was said before.
			judged := flag == "NAME" || known && (flag != "--address" || len(c.Addresses) > 0)
			if ours && judged {
				f.File, f.Line, f.Path = "", 0, ""
				*p = append(*p, flag+f.Error())
			}
		}
		return
	}
	i := slices.IndexFunc(snapshot.Peers, func(peer spec.Peer) bool { return peer.Name == c.Name })
	waiting := state.PresharedKey(&snapshot.Peers[i], time.Now())
	if waiting.IsZero() {
		return
	}
	if !c.PresharedKey.IsZero() {
		p.add("--preshared-key", "the gateway has a pre-shared key for %s already; leave the flag out to use that one, or remove it first", c.Name)
	}
	c.PresharedKey = waiting
}

// flagOf says what on the command line a field of the new peer comes from.
func flagOf(field string) (flag string, ours bool) {
	field, ours = strings.CutPrefix(field, "peers[0].")
	field, _, _ = strings.Cut(field, "[")
	flags := map[string]string{"name": "NAME", "addresses": "--address"}
	return cmp.Or(flags[field], field), ours
}

func (p problems) error(o peerOptions) error {
	text := "peer new: " + count(len(p), "problem") + "\n  " + strings.Join(p, "\n  ")
	if o.configDir == "" {
		text += "\nor give --config-dir, the gateway's configuration directory, which answers all but the name"
	}
	return errors.New(text)
}
