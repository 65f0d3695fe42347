// Command cluster is this project's own Kubernetes: a control plane and a few
// real nodes, each a machine of its own made of namespaces on this one. It
// builds every part of it from pinned Go modules and needs no container
// engine, no virtual machine and no registry. See README.md for the verbs.
package main

import (
	"os"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
