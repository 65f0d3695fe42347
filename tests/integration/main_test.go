// Package integration runs the gateway that the chart describes, in network
// namespaces and against stock WireGuard clients, and looks at what its users
// would see: packets, metrics, log lines.
package integration

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/gateway"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/vm"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

// envAgent names the environment variable that holds the agent to test, where it
// is not to be built.
const envAgent = "VPN_GATEWAY_AGENT"

// scratch is a directory of this run; agent builds the agent there, once and only
// where a test needs it.
var (
	scratch string
	agent   = sync.OnceValues(func() (string, error) {
		if binary := os.Getenv(envAgent); binary != "" {
			return binary, nil
		}
		return gateway.Build(context.Background(), scratch)
	})
)

func TestMain(m *testing.M) {
	podrun.Main()
	os.Exit(vm.Main(func() int { return run(m) }))
}

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "vpngw-integration-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// need skips t where the machine cannot run a gateway and its clients.
func need(t *testing.T) {
	t.Helper()
	testenv.Need(t, testenv.Linux(), testenv.Root(), testenv.NetNS(), testenv.TUN(), wgclient.Tools(), testenv.Tool("nft", "ping"))
}
