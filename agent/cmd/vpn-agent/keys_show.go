package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/rotate"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/watch"
)

type keysShowOptions struct {
	clusterOptions
	secret, key, configDir, output string
	presharedSecrets               []string
	overlap                        time.Duration
	overlapGiven                   bool
}

func newKeysShowCommand(env environment) *cobra.Command {
	var o keysShowOptions
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Tell the ages of keys and what is due, without a key",
		Long: "Tell of every key of the gateway whether it is in force, since when, and what comes next. Public keys are " +
			"shown, private and pre-shared ones never.\n\n" +
			"The Secrets are read from the cluster where --secret or --preshared-secret names them, else from the gateway's " +
			"configuration directory, as in the gateway's own container.\n\n" +
			"STATE is current (in force), next (its time is to come), retiring (no more in force, but still answered), retired " +
			"(answered no more), or copy (of the key in another entry). Entries with a fault are named on standard error, and the " +
			"exit status is 1.",
		Example: "  kubectl exec deployment/vpn-gateway -- /vpn-agent keys show\n" +
			"  vpn-agent keys show --kubeconfig=$HOME/.kube/config --namespace=vpn --secret=vpn-gateway-key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.overlapGiven = cmd.Flags().Changed("overlap")
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return keysShow(ctx, env, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.secret, "secret", "", "Secret with the server key")
	f.StringVar(&o.key, "key", "privateKey", "key of --secret with the server key that has no time")
	f.StringSliceVar(&o.presharedSecrets, "preshared-secret", nil, "Secret with pre-shared keys; may be given several times")
	f.StringVar(&o.configDir, "config-dir", "", "the gateway's configuration directory; default: "+defaultConfigDir+" where that exists")
	f.DurationVar(&o.overlap, "overlap", defaultOverlap, overlapUsage+"; from the configuration directory where that says it")
	f.StringVar(&o.output, "output", "text", "text or json")
	o.register(cmd)
	return cmd
}

func keysShow(ctx context.Context, env environment, o keysShowOptions) error {
	switch {
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("--output %q is unknown; use text or json", o.output)
	case o.overlap < 0:
		return fmt.Errorf("--overlap %s is less than zero; use 0s for none", o.overlap)
	}
	named := o.secret != "" || len(o.presharedSecrets) > 0
	var found []foundSecret
	var err error
	switch {
	case named && o.configDir != "":
		return errors.New("--config-dir cannot be used together with --secret or --preshared-secret")
	case named:
		found, err = secretsOfCluster(ctx, o)
	default:
		found, err = secretsOfDir(&o)
	}
	if err != nil {
		return err
	}
	now := time.Now()
	var all []shownKey
	faulty := 0
	for _, s := range found {
		rows, err := s.rows(o, now)
		for _, r := range rows {
			all = append(all, newShownKey(s, r, now))
		}
		if err != nil {
			faulty++
			fmt.Fprintf(env.Err, "%s:\n%v\n", s.where, err)
		}
	}
	if err := printKeys(env.Out, o.output, all); err != nil {
		return err
	}
	if faulty > 0 {
		return fmt.Errorf("faults in %s", count(faulty, "Secret"))
	}
	return nil
}

// foundSecret is a Secret, or the directory that it is mounted in.
type foundSecret struct {
	kind  rotate.Kind
	where string
	data  map[string][]byte
	key   string // name of the server key's entry without a time
}

func (s foundSecret) rows(o keysShowOptions, now time.Time) ([]rotate.Row, error) {
	if s.kind == rotate.Server {
		return rotate.ShowServer(s.data, s.key, now, o.overlap)
	}
	return rotate.ShowPreshared(s.data, now)
}

func secretsOfCluster(ctx context.Context, o keysShowOptions) ([]foundSecret, error) {
	api, err := rotate.NewAPI(o.APIOptions)
	if err != nil {
		return nil, err
	}
	var out []foundSecret
	add := func(kind rotate.Kind, name string) error {
		have, err := api.Secrets().Get(ctx, name)
		out = append(out, foundSecret{kind: kind, where: "secret " + api.Namespace() + "/" + name, data: have.Data, key: o.key})
		return err
	}
	if o.secret != "" {
		if err := add(rotate.Server, o.secret); err != nil {
			return nil, err
		}
	}
	for _, name := range o.presharedSecrets {
		if err := add(rotate.Preshared, name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// secretsOfDir reads the directory, and the overlap where only that says it.
func secretsOfDir(o *keysShowOptions) ([]foundSecret, error) {
	var args []string
	if o.configDir != "" {
		args = []string{o.configDir}
	}
	dir, err := dirOf(args)
	if err != nil {
		return nil, errors.New("nothing to show; name a Secret with --secret or --preshared-secret, or give --config-dir (" + defaultConfigDir + " does not exist here)")
	}
	files, err := watch.Read(dir)
	if err != nil {
		return nil, err
	}
	if overlap, ok := overlapOf(files); ok && !o.overlapGiven {
		o.overlap = overlap
	}
	keyDir, keyEntry := filepath.Split(spec.PrivateKeyFile)
	bySecret := map[string]map[string][]byte{}
	for file, content := range files {
		below, entry := filepath.Split(file)
		if entry == "" || below != keyDir && !strings.HasPrefix(below, spec.PresharedDir) {
			continue
		}
		if bySecret[below] == nil {
			bySecret[below] = map[string][]byte{}
		}
		bySecret[below][entry] = content
	}
	var out []foundSecret
	for _, below := range slices.Sorted(maps.Keys(bySecret)) { // key/ before psk/
		s := foundSecret{kind: rotate.Preshared, where: filepath.Join(dir, below), data: bySecret[below], key: keyEntry}
		if below == keyDir {
			s.kind = rotate.Server
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there are no keys in %s; mount the Secrets at key/ and psk/", dir)
	}
	return out, nil
}

// overlapOf finds keyRotation.server.overlap. Whether the file is valid is not for
// this verb to say.
func overlapOf(files spec.Files) (time.Duration, bool) {
	var doc struct {
		KeyRotation struct {
			Server struct {
				Overlap *time.Duration `yaml:"overlap"`
			} `yaml:"server"`
		} `yaml:"keyRotation"`
	}
	overlap := &doc.KeyRotation.Server.Overlap
	if yaml.Unmarshal(files[spec.GatewayFile], &doc) != nil || *overlap == nil || **overlap < 0 {
		return 0, false
	}
	return **overlap, true
}

// shownKey is an entry of the document of --output json.
type shownKey struct {
	Kind       rotate.Kind  `json:"kind"`
	Secret     string       `json:"secret"`
	Entry      string       `json:"entry"`
	Peer       string       `json:"peer,omitempty"`
	Slot       key.Slot     `json:"slot,omitempty"`
	PublicKey  key.Public   `json:"publicKey,omitzero"`
	State      rotate.State `json:"state"`
	From       time.Time    `json:"from,omitzero"`
	Retires    time.Time    `json:"retires,omitzero"`
	AgeSeconds int64        `json:"ageSeconds,omitempty"`
	Due        string       `json:"due,omitempty"`

	age string
}

func newShownKey(s foundSecret, r rotate.Row, now time.Time) shownKey {
	k := shownKey{
		Kind: r.Kind, Secret: filepath.Base(s.where), Entry: r.Entry, Peer: r.Peer, Slot: r.Slot, PublicKey: r.PublicKey,
		State: r.State, From: r.From, Retires: r.Retires, Due: r.Due(now), age: r.Age(now),
	}
	if k.age != "" {
		k.AgeSeconds = int64(now.Sub(r.From).Seconds())
	}
	return k
}

func printKeys(out io.Writer, format string, keys []shownKey) error {
	if format == "json" {
		if keys == nil {
			keys = []shownKey{} // a list, not null
		}
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(keys)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KIND\tENTRY\tSLOT\tPUBLIC KEY\tSTATE\tFROM\tRETIRES\tAGE\tDUE")
	for _, k := range keys {
		public := ""
		if !k.PublicKey.IsZero() {
			public = k.PublicKey.String()
		}
		cells := []string{
			string(k.Kind), k.Entry, string(k.Slot), public, string(k.State),
			timeText(k.From), timeText(k.Retires), k.age, k.Due,
		}
		for i, c := range cells {
			if c == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	return table.Flush()
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
