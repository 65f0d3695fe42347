package cluster

import (
	"context"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// Status is what a person or a test asks of a running cluster.
type Status struct {
	APIServer APIServerStatus `json:"apiServer"`
	Nodes     []NodeStatus    `json:"nodes"`
	// Netns are network namespaces by role: cp, client.
	Netns map[string]string `json:"netns"`
	// ClientIP is the outside client's address.
	ClientIP string `json:"clientIP"`
	// Kubeconfig is the administrator's; it works inside of the namespace cp.
	Kubeconfig string `json:"kubeconfig"`
	// Bin is the directory of programs, kubectl among them.
	Bin string `json:"bin"`
	// State is the directory with the machines' disks and logs.
	State    string   `json:"state"`
	Settings Settings `json:"settings"`
}

// APIServerStatus is that of the control plane.
type APIServerStatus struct {
	// Address is its host:port inside of the namespace cp.
	Address string `json:"address"`
	// Running tells whether the machine runs, Ready whether the API is served.
	Running bool `json:"running"`
	Ready   bool `json:"ready"`
}

// NodeStatus is that of one node.
type NodeStatus struct {
	Name string `json:"name"`
	IP   string `json:"ip"`
	// Pods is the range of the node's Pods.
	Pods  string `json:"pods"`
	Netns string `json:"netns"`
	// Running tells whether the machine runs; PID is its pid 1 on the host.
	Running bool `json:"running"`
	PID     int  `json:"pid,omitempty"`
	// Ready is the Node object's condition.
	Ready bool `json:"ready"`
}

// Status asks every part of the cluster how it is.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	s := Status{
		Netns: map[string]string{
			topology.ControlPlane: topology.Netns(topology.ControlPlane),
			topology.Client:       topology.Netns(topology.Client),
		},
		ClientIP:   c.plan.ClientIP().String(),
		Kubeconfig: c.Kubeconfig(),
		Bin:        c.Bin(),
		State:      c.record.State,
		Settings:   c.record.Settings,
	}
	api, err := c.api()
	if err != nil {
		return Status{}, err
	}
	s.APIServer = APIServerStatus{
		Address: c.plan.APIServer(),
		Running: c.record.Machines[topology.ControlPlane].Alive(),
		Ready:   api.Ready(ctx) == nil,
	}
	ready := map[string]bool{}
	if s.APIServer.Ready {
		if ready, err = api.Nodes(ctx); err != nil {
			return Status{}, err
		}
	}
	for _, n := range c.plan.Nodes {
		ref := c.record.Machines[n.Name]
		status := NodeStatus{
			Name: n.Name, IP: n.IP.String(), Pods: n.Pods.String(), Netns: topology.Netns(n.Name),
			Running: ref.Alive(), Ready: ready[n.Name],
		}
		if status.Running {
			status.PID = ref.PID
		}
		s.Nodes = append(s.Nodes, status)
	}
	return s, nil
}
