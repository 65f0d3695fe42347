package telemetry

import "github.com/prometheus/client_golang/prometheus"

// metric describes a family of time series. The catalogue is the one source of
// what /metrics says about itself (HELP, TYPE) and of docs/metrics.md.
type metric struct {
	name, kind, help string
	labels           []string
}

// The kinds of the text exposition format that we use.
const (
	gauge     = "gauge"
	counter   = "counter"
	histogram = "histogram"
)

// Places in the catalogue.
const (
	ready = iota
	condition
	configGeneration
	configInfo
	reloadOK
	reloadTime
	reloads
	reloadDuration
	runDuration
	dataPlaneInfo
	peers
	configuredPeers
	peerEvents
	stoppedPackets
	keySince
	keyNext
	keyRetires
	rotationOK
	rotationTime
	movedPeers
	externalSecrets
	fleetMembers
	connectedPeers
	fleetAdopted
	fleetYielded
	fleetCalls
	fleetRefusedPackets
	fleetRefusedMessages
	readinessMarked
	readinessRefused
	buildInfo
	deviceInfo

	// From here on: written by exposition.
	dumpOK
	dumpDuration
	driftedPeers
	peerInfo
	peerAllowedIPs
	peerReceived
	peerTransmitted
	peerHandshake
)

// catalogue lists every metric of ours. The wireguard_ names, labels and
// meanings are those of github.com/mdlayher/wireguard_exporter, so that
// existing dashboards work; its endpoint label is left out, because each time
// a client roams it would begin a series of its own.
func catalogue() []metric {
	return []metric{
		ready:                {"vpn_gateway_ready", gauge, "Whether packets would be forwarded: 1 while every condition holds that readiness depends on.", nil},
		condition:            {"vpn_gateway_condition", gauge, "Whether a condition of /readyz holds. The condition config is informational: the last good state stays in force.", []string{"name"}},
		configGeneration:     {"vpn_gateway_config_generation", gauge, "Number of configurations applied since the start.", nil},
		configInfo:           {"vpn_gateway_config_info", gauge, "Configuration in force, by the hash of its files.", []string{"hash"}},
		reloadOK:             {"vpn_gateway_config_last_reload_successful", gauge, "Whether the last attempt to read and apply the configuration succeeded.", nil},
		reloadTime:           {"vpn_gateway_config_last_reload_success_timestamp_seconds", gauge, "UNIX timestamp of the last successful reload, 0 where there was none.", nil},
		reloads:              {"vpn_gateway_config_reloads_total", counter, "Number of reloads by result: success or failure.", []string{"result"}},
		reloadDuration:       {"vpn_gateway_config_reload_duration_seconds", histogram, "Time from reading changed files to having them in force.", nil},
		runDuration:          {"vpn_gateway_run_duration_seconds", histogram, "Time of a run of the reconcile loop, whether or not there was something to do.", nil},
		dataPlaneInfo:        {"vpn_gateway_data_plane_info", gauge, "Data plane in force, kernel or userspace, and why.", []string{"data_plane", "reason"}},
		peers:                {"vpn_gateway_peers", gauge, "Number of peers on the device by state: connected (a handshake in the last 180 s), idle (session over, nothing to say), dead (the gateway calls and gets no answer), never (no handshake yet), elsewhere (another replica has the session).", []string{"state"}},
		configuredPeers:      {"vpn_gateway_configured_peers", gauge, "Number of peers in the configuration in force.", nil},
		peerEvents:           {"vpn_gateway_peer_events_total", counter, "Number of peers seen to connect, disconnect or roam.", []string{"event"}},
		stoppedPackets:       {"vpn_gateway_stopped_packets_total", counter, "Number of packets that the firewall stopped, by reason, since its table was last made anew.", []string{"reason"}},
		keySince:             {"vpn_gateway_key_in_force_since_timestamp_seconds", gauge, "UNIX timestamp since when the key in force counts, by kind: server, or preshared, of which it is the oldest; 0 where no key's name says so.", []string{"kind"}},
		keyNext:              {"vpn_gateway_key_next_activation_timestamp_seconds", gauge, "UNIX timestamp at which the next key comes in force, by kind; 0 where none is scheduled.", []string{"kind"}},
		keyRetires:           {"vpn_gateway_server_key_retirement_timestamp_seconds", gauge, "UNIX timestamp at which the older of two server keys is no longer answered to; 0 where there is one key.", nil},
		rotationOK:           {"vpn_gateway_key_rotation_last_run_successful", gauge, "Whether the last job that was to rotate keys succeeded, by kind; missing where no job has run yet.", []string{"kind"}},
		rotationTime:         {"vpn_gateway_key_rotation_last_run_timestamp_seconds", gauge, "UNIX timestamp of the last job that was to rotate keys, by kind.", []string{"kind"}},
		movedPeers:           {"vpn_gateway_moved_peers", gauge, "Number of peers that use the newer of two server keys.", nil},
		externalSecrets:      {"vpn_gateway_external_secret_ready", gauge, "Whether the last refresh of an ExternalSecret from its backend succeeded; missing where none is used.", []string{"name"}},
		fleetMembers:         {"vpn_gateway_fleet_members", gauge, "Number of replicas by state: alive, draining, and for a minute dead or left. Missing, like all of the fleet, where it is switched off.", []string{"state"}},
		connectedPeers:       {"vpn_gateway_connected_peers", gauge, "Number of peers that this replica serves and that had a handshake within 180 s.", nil},
		fleetAdopted:         {"vpn_gateway_fleet_adopted_peers_total", counter, "Number of times that a peer came from another replica.", nil},
		fleetYielded:         {"vpn_gateway_fleet_yielded_peers_total", counter, "Number of times that a peer went to another replica.", nil},
		fleetCalls:           {"vpn_gateway_fleet_calls_total", counter, "Number of handshakes that this replica began to take a peer over.", nil},
		fleetRefusedPackets:  {"vpn_gateway_fleet_refused_packets_total", counter, "Number of packets of other replicas' sessions that led to no handshake, by reason.", []string{"reason"}},
		fleetRefusedMessages: {"vpn_gateway_fleet_refused_messages_total", counter, "Number of messages from other replicas that were refused, by reason: encryption (another key, or none), malformed.", []string{"reason"}},
		buildInfo:            {"vpn_gateway_build_info", gauge, "Version of the agent and of the Go release that it was built with.", []string{"version", "goversion"}},
		deviceInfo:           {"wireguard_device_info", gauge, "Metadata about a device.", []string{"device", "public_key"}},
		readinessMarked:      {"vpn_gateway_readiness_marked_total", counter, "Number of dead replicas that this one has taken out of service.", nil},
		readinessRefused:     {"vpn_gateway_readiness_refused_total", counter, "Number of times that this replica did not take a dead one out of service, or was not let back in itself, by reason: minority (it sees fewer than half of the replicas, and does not know the others to be silent), alive (it sees fewer than half of them, and another one shows that it lives), lease (it sees half of them or fewer, and another one holds the Lease), last_ready (no replica that is alive is in service), error (of the API server).", []string{"reason"}},

		dumpOK:          {"vpn_gateway_device_dump_successful", gauge, "Whether this scrape could read the peers from the device; the metrics below are missing where it could not.", nil},
		dumpDuration:    {"vpn_gateway_device_dump_duration_seconds", gauge, "Time that this scrape took to read the peers from the device.", nil},
		driftedPeers:    {"vpn_gateway_drifted_peers", gauge, "Number of peers that are missing from the device though configured, or unexpected on it.", []string{"drift"}},
		peerInfo:        {"wireguard_peer_info", gauge, "Metadata about a peer. The public_key label on peer metrics refers to the peer's public key; not the device's public key. The name is empty where the peer is not configured.", []string{"device", "name", "public_key"}},
		peerAllowedIPs:  {"wireguard_peer_allowed_ips_info", gauge, "Metadata about each of a peer's allowed IP subnets for a given device.", []string{"allowed_ips", "device", "public_key"}},
		peerReceived:    {"wireguard_peer_receive_bytes_total", counter, "Number of bytes received from a given peer.", []string{"device", "public_key"}},
		peerTransmitted: {"wireguard_peer_transmit_bytes_total", counter, "Number of bytes transmitted to a given peer.", []string{"device", "public_key"}},
		peerHandshake:   {"wireguard_peer_last_handshake_seconds", gauge, "UNIX timestamp for the last handshake with a given peer, 0 where there was none.", []string{"device", "public_key"}},
	}
}

// desc is the metric as the client library knows it.
func (m metric) desc() *prometheus.Desc { return prometheus.NewDesc(m.name, m.help, m.labels, nil) }
