package telemetry

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

const docsFile = "../../../docs/metrics.md"

const docsIntro = `# Metrics

<!-- Made from agent/internal/telemetry/catalogue.go by
     go test ./agent/internal/telemetry -run TestDocs -update; do not edit. -->

The agent answers ` + "`GET /metrics`" + ` on its HTTP port (8080) in the Prometheus text
format 0.0.4. Every scrape reads the device afresh. With N peers on the device
there are four series for each, and one more for each of its allowed IPs:
10,000 peers with one address make 50,000 series and a body of 6 MB.

The ` + "`wireguard_`" + ` names and labels are those of mdlayher/wireguard_exporter, so its
dashboards work; a peer's endpoint is no label, because each time a client roams
it would begin a series of its own. The log has it.

Beside these there are the Go runtime's metrics (` + "`go_`" + `) and the process's own
(` + "`process_`" + `).

| name | type | labels | meaning |
|---|---|---|---|
`

const docsQueries = `
## Queries

| what for | query |
|---|---|
| a configuration was refused; the last good one stays in force | ` + "`vpn_gateway_config_last_reload_successful == 0`" + ` |
| a gateway does not forward packets, and why | ` + "`vpn_gateway_condition == 0 and on (instance) vpn_gateway_ready == 0`" + ` |
| replicas with different configurations | ` + "`count(count by (hash) (vpn_gateway_config_info)) > 1`" + ` |
| sites that do not answer | ` + "`vpn_gateway_peers{state=\"dead\"} > 0`" + ` |
| bytes per second from each peer, by name | ` + "`rate(wireguard_peer_receive_bytes_total[5m]) * on (instance, device, public_key) group_left (name) wireguard_peer_info`" + ` |
| seconds since each peer's last handshake | ` + "`time() - (wireguard_peer_last_handshake_seconds > 0)`" + ` |
`

// TestDocs holds docs/metrics.md to the catalogue.
func TestDocs(t *testing.T) {
	var want strings.Builder
	want.WriteString(docsIntro)
	for _, m := range catalogue() {
		labels := make([]string, len(m.labels))
		for i, l := range m.labels {
			labels[i] = "`" + l + "`"
		}
		if strings.ContainsAny(m.help, "\\|\n") {
			t.Errorf("help of %s has a character that needs escaping", m.name)
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", m.name, m.kind, strings.Join(labels, ", "), m.help)
	}
	want.WriteString(docsQueries)
	if *update {
		if err := os.MkdirAll("../../../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(docsFile, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("docs/metrics.md is stale; go test ./agent/internal/telemetry -run TestDocs -update (-want +got):\n%s", diff)
	}
}
