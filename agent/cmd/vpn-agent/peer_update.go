package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
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

type peerUpdateOptions struct {
	configDir string
	oldKeys   []string
}

func newPeerUpdateCommand(env environment) *cobra.Command {
	var o peerUpdateOptions
	cmd := &cobra.Command{
		Use:   "update [FILE]",
		Short: "Put a client's file right after keys have rotated",
		Long: "Read a client's wg-quick file and print it as it has to be now: with the gateway's newest public key, the port " +
			"that answers for it and the client's pre-shared key in force. Everything else stays as it is, but that of two " +
			"sections for the gateway, with an old key and with the newest, one is left, which gets the allowed IPs of both. " +
			"Without FILE, or where FILE is -, the file comes from standard input.\n\n" +
			"The newest key may be one that is still to come in force: the gateway answers to it from the moment it knows it. " +
			"What remains to be known, such as until when the old one is answered to, goes to standard error; no secret does.",
		Example: "  kubectl exec -i deployment/vpn-gateway -- /vpn-agent peer update < alice.conf > alice.new",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("peer update takes one FILE, not %d", len(args))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return updatePeer(env, o, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.configDir, "config-dir", "", "the gateway's configuration directory; default: "+defaultConfigDir+" where that exists")
	f.StringSliceVar(&o.oldKeys, "old-public-key", nil, "a public key that the gateway had once, and that the file may still have")
	return cmd
}

func updatePeer(env environment, o peerUpdateOptions, args []string) error {
	var dirs []string
	if o.configDir != "" {
		dirs = []string{o.configDir}
	}
	dir, err := dirOf(dirs)
	if err != nil {
		return errors.New("--config-dir: missing; give the gateway's configuration directory (" + defaultConfigDir + " does not exist here)")
	}
	config, err := readClient(env, args)
	if err != nil {
		return err
	}
	files, err := watch.Read(dir)
	if err != nil {
		return fmt.Errorf("--config-dir: %w", err)
	}
	snapshot, err := spec.Load(files)
	if err != nil {
		return printFaults(env, dir, err)
	}
	now := time.Now()
	ids := state.Identities(snapshot, now)
	newest := ids[len(ids)-1]
	u := clientconf.Update{PublicKey: newest.Key.Public(), Endpoint: snapshot.Gateway.Endpoint(newest.Slot)}
	for _, k := range snapshot.ServerKeys {
		u.Known = append(u.Known, k.Key.Public())
	}
	for _, text := range o.oldKeys {
		k, err := key.ParsePublic(text)
		if err != nil { // not quoted: it may be most of a private key
			return fmt.Errorf("--old-public-key: %w; give the PublicKey of the client's file", err)
		}
		u.Known = append(u.Known, k)
	}
	private, err := clientconf.ParseConfig(config)
	if err != nil {
		return err
	}
	peer := findPeer(snapshot, private.Public())
	if peer != nil {
		psk := state.PresharedKey(peer, now)
		u.PresharedKey = &psk
	}
	updated, err := u.Reveal(config)
	if err != nil {
		return fmt.Errorf("%w; where it had another one once, give that by --old-public-key", err)
	}
	if _, err := io.WriteString(env.Out, updated); err != nil {
		return err
	}
	_, err = io.WriteString(env.Err, explainUpdate(peer, ids, now))
	return err
}

func readClient(env environment, args []string) (string, error) {
	in := env.In
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, 1<<20))
	return string(text), err
}

// findPeer returns nil for a client that the gateway does not know.
func findPeer(s *spec.Snapshot, k key.Public) *spec.Peer {
	i := slices.IndexFunc(s.Peers, func(p spec.Peer) bool { return p.PublicKey == k })
	if i < 0 {
		return nil
	}
	return &s.Peers[i]
}

// explainUpdate says what the file does not.
func explainUpdate(peer *spec.Peer, ids []state.Identity, now time.Time) string {
	var out strings.Builder
	day := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	newest := ids[len(ids)-1]
	fmt.Fprintf(&out, "The file of %s has the gateway's newest public key, %s.\n", nameOf(peer), newest.Key.Public())
	if newest.From.After(now) {
		fmt.Fprintf(&out, "New clients get it from %s on; it may be used at once.\n", day(newest.From))
	}
	if len(ids) > 1 && !ids[0].Retires.IsZero() {
		fmt.Fprintf(&out, "The one before, %s, is answered to until %s.\n", ids[0].Key.Public(), day(ids[0].Retires))
	}
	if peer == nil {
		out.WriteString("The gateway has no peer with the client's public key: its pre-shared key, if any, was left alone.\n")
		return out.String()
	}
	for _, k := range peer.Scheduled {
		if k.From.After(now) {
			fmt.Fprintf(&out, "Another pre-shared key comes in force at %s: the file has to change again then.\n", day(k.From))
		}
	}
	return out.String()
}

func nameOf(p *spec.Peer) string {
	if p == nil {
		return "this client"
	}
	return cmp.Or(p.Name, "this client")
}
