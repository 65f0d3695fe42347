package alerts

// alertCase is what an alert fires with, for which Pods and labels it does, and what it
// leaves alone. Lines are as in [parse].
type alertCase struct {
	alert string
	fires []string
	want  []string
	quiet [][]string
}

func cases() []alertCase {
	return []alertCase{
		{"VPNGatewayAbsent", nil, []string{""}, [][]string{{`a vpn_gateway_ready 0`}, {`a vpn_gateway_ready 1`, `b vpn_gateway_ready 0`}}},
		{
			"VPNGatewayNotForwarding", []string{`a vpn_gateway_condition{name="firewall"} 0`, `a vpn_gateway_condition{name="port"} 1`, `b vpn_gateway_condition{name="device"} 0`},
			[]string{"name=device b", "name=firewall a"},
			[][]string{{`a vpn_gateway_condition{name="firewall"} 1`, `a vpn_gateway_condition{name="serving"} 0`, `a vpn_gateway_condition{name="config"} 0`, `a vpn_gateway_condition{name="link"} 0`}},
		},
		{"VPNGatewayConfigRefused", []string{`a vpn_gateway_config_last_reload_successful 0`}, []string{"a"}, [][]string{{`a vpn_gateway_config_last_reload_successful 1`}}},
		{"VPNGatewayPeersDrifted", []string{`a vpn_gateway_drifted_peers{drift="missing"} 2`}, []string{"drift=missing a"}, [][]string{{`a vpn_gateway_drifted_peers{drift="missing"} 0`}}},
		{"VPNGatewayDeviceUnreadable", []string{`a vpn_gateway_device_dump_successful 0`}, []string{"a"}, [][]string{{`a vpn_gateway_device_dump_successful 1`}}},
		{
			"VPNGatewayNextKeyUnanswered", []string{`a vpn_gateway_condition{name="nextKey"} 0`}, []string{"name=nextKey a"},
			[][]string{{`a vpn_gateway_condition{name="nextKey"} 1`, `a vpn_gateway_condition{name="link"} 0`}},
		},
		{
			// One day after the moment of evaluation; 42 hours are a quarter of the overlap.
			"VPNGatewayServerKeyRetires",
			[]string{`a vpn_gateway_server_key_retirement_timestamp_seconds 1700088200`, `a vpn_gateway_peers{state="connected"} 3`, `a vpn_gateway_peers{state="dead"} 0`, `a vpn_gateway_moved_peers 2`},
			[]string{"a"},
			[][]string{
				{`a vpn_gateway_server_key_retirement_timestamp_seconds 1700088200`, `a vpn_gateway_peers{state="connected"} 3`, `a vpn_gateway_moved_peers 3`, `b vpn_gateway_peers{state="connected"} 3`, `b vpn_gateway_moved_peers 0`},
				{`a vpn_gateway_server_key_retirement_timestamp_seconds 1700600000`, `a vpn_gateway_peers{state="connected"} 3`, `a vpn_gateway_moved_peers 0`},
				{`a vpn_gateway_server_key_retirement_timestamp_seconds 0`, `a vpn_gateway_peers{state="connected"} 3`, `a vpn_gateway_moved_peers 0`},
			},
		},
		{
			"VPNGatewayKeyRotationFailed", []string{`a vpn_gateway_key_rotation_last_run_successful{kind="server"} 0`, `b vpn_gateway_key_rotation_last_run_successful{kind="server"} 1`, `a vpn_gateway_key_rotation_last_run_successful{kind="preshared"} 1`},
			[]string{"kind=server"}, [][]string{{`a vpn_gateway_key_rotation_last_run_successful{kind="server"} 1`}},
		},
		{
			"VPNGatewaySecretNotRefreshed", []string{`a vpn_gateway_external_secret_ready{name="peers"} 0`, `b vpn_gateway_external_secret_ready{name="peers"} 0`, `a vpn_gateway_external_secret_ready{name="keys"} 1`},
			[]string{"name=peers"}, [][]string{{`a vpn_gateway_external_secret_ready{name="peers"} 1`}},
		},
		{
			"VPNGatewayReplicasMissing", []string{`a vpn_gateway_fleet_members{state="alive"} 2`, `b vpn_gateway_fleet_members{state="alive"} 1`, `a vpn_gateway_fleet_members{state="dead"} 1`},
			[]string{""}, [][]string{{`a vpn_gateway_fleet_members{state="alive"} 3`, `b vpn_gateway_fleet_members{state="alive"} 1`}},
		},
		{
			"VPNGatewayReplicasApart", []string{
				`a vpn_gateway_fleet_members{state="alive"} 2`, `a vpn_gateway_fleet_members{state="draining"} 0`, `a vpn_gateway_fleet_members{state="dead"} 1`,
				`b vpn_gateway_fleet_members{state="alive"} 2`, `b vpn_gateway_fleet_members{state="draining"} 0`, `b vpn_gateway_fleet_members{state="dead"} 1`,
				`c vpn_gateway_fleet_members{state="alive"} 1`, `c vpn_gateway_fleet_members{state="draining"} 0`, `c vpn_gateway_fleet_members{state="dead"} 2`,
			},
			[]string{"a", "b", "c"},
			[][]string{
				{`a vpn_gateway_fleet_members{state="alive"} 1`, `a vpn_gateway_fleet_members{state="draining"} 1`, `b vpn_gateway_fleet_members{state="alive"} 1`, `b vpn_gateway_fleet_members{state="draining"} 1`},
				{`a vpn_gateway_fleet_members{state="alive"} 3`, `a vpn_gateway_fleet_members{state="draining"} 0`}, // the others are not scraped
			},
		},
		{
			"VPNGatewayConfigsDiffer", []string{`a vpn_gateway_config_info{hash="1"} 1`, `b vpn_gateway_config_info{hash="1"} 1`, `c vpn_gateway_config_info{hash="2"} 1`},
			[]string{""}, [][]string{{`a vpn_gateway_config_info{hash="1"} 1`, `b vpn_gateway_config_info{hash="1"} 1`}},
		},
		{"VPNGatewayLinkBroken", []string{`a vpn_gateway_condition{name="link"} 0`}, []string{"name=link a"}, [][]string{{`a vpn_gateway_condition{name="link"} 1`, `a vpn_gateway_condition{name="nextKey"} 0`}}},
		{
			"VPNGatewayForeignMessages", []string{`a vpn_gateway_fleet_refused_messages_total{reason="encryption"} 3→7`, `b vpn_gateway_fleet_refused_messages_total{reason="encryption"} 0`},
			[]string{"a"}, [][]string{{`a vpn_gateway_fleet_refused_messages_total{reason="encryption"} 7`, `a vpn_gateway_fleet_refused_messages_total{reason="malformed"} 3→7`}},
		},
		{
			"VPNGatewayReplicaDied", []string{`a vpn_gateway_readiness_marked_total 0→1`, `b vpn_gateway_readiness_marked_total 0`},
			[]string{""}, [][]string{{`a vpn_gateway_readiness_marked_total 1`}},
		},
		{
			"VPNGatewayReplicaNotMarked", []string{`a vpn_gateway_readiness_refused_total{reason="lease"} 0→1`, `a vpn_gateway_readiness_refused_total{reason="alive"} 0`},
			[]string{"a reason=lease"}, [][]string{{`a vpn_gateway_readiness_refused_total{reason="lease"} 1`, `a vpn_gateway_readiness_refused_total{reason="error"} 0→1`}},
		},
	}
}
