package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// maxReadiness is far above any answer of /readyz in bytes.
const maxReadiness = 1 << 20

func newProbeCommand(env environment) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "probe URL",
		Short: "Ask a gateway whether it is ready, and for the reasons",
		Long: "Get URL, the /readyz of a gateway, and print its conditions as a table. The exit status is 1 unless all of them " +
			"hold. A URL without path means /readyz.",
		Example: "  vpn-agent probe http://127.0.0.1:8080",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("probe takes one URL, not %d; such as http://127.0.0.1:8080/readyz", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return probe(ctx, env.Out, args[0])
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	return cmd
}

func probe(ctx context.Context, out io.Writer, address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("URL %q is not of the form http://host:port/readyz", address)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/readyz"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	var r telemetry.Readiness
	err = json.NewDecoder(io.LimitReader(response.Body, maxReadiness)).Decode(&r)
	if err != nil || len(r.Conditions) == 0 {
		return fmt.Errorf("%s answers %q and no conditions; is it the /readyz of a gateway?", u, response.Status)
	}
	if err := printReadiness(out, r); err != nil {
		return err
	}
	return readinessError(r, response)
}

func printReadiness(out io.Writer, r telemetry.Readiness) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(table, strings.TrimRight(strings.Join(cells, "\t"), "\t")) }
	row("CONDITION", "OK", "DETAIL")
	for _, c := range r.Conditions {
		ok := "yes"
		switch {
		case !c.OK && c.Informational:
			ok = "no (for information)"
		case !c.OK:
			ok = "no"
		}
		row(c.Name, ok, c.Detail)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	ready := "ready"
	if !r.Ready {
		ready = "not ready"
	}
	_, err := fmt.Fprintf(out, "%s: %s, %s, UDP port %d, public key %s, version %s\n", ready, r.Interface, r.DataPlane, r.ListenPort, r.PublicKey, r.Version)
	return err
}

// readinessError is nil where both the body and the status say 'ready'.
func readinessError(r telemetry.Readiness, response *http.Response) error {
	if r.Ready && response.StatusCode == http.StatusOK {
		return nil
	}
	var failing []string
	for _, c := range r.Conditions {
		if !c.OK && !c.Informational {
			failing = append(failing, c.Name)
		}
	}
	if len(failing) == 0 {
		return errors.New("not ready: status " + response.Status)
	}
	return errors.New("not ready: " + strings.Join(failing, ", "))
}
