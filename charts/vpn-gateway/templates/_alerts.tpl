{{/* Alerts on the gateway's metrics, and which of them there are. */}}

{{/*
Every alert of the chart, as a list of Prometheus's own rules, each with `when`: whether the
values leave anything to watch. SCOPE stands for the labels of the release's Pods as the
chart's monitors give them; in annotations <pod> stands for the label pod of the alert, <value> for
what its expression gives, and <duration> for the same as a length of time.
*/}}
{{- define "vpn-gateway.alertCatalogue" -}}
{{- $name := include "vpn-gateway.fullname" . -}}
{{- $namespace := include "vpn-gateway.namespace" . -}}
{{- $gateway := printf "%s in namespace %s" $name $namespace -}}
{{- $probe := printf "kubectl --namespace %s exec <pod> -- /vpn-agent probe http://127.0.0.1:%d" $namespace (int .Values.ports.http) -}}
{{- $logs := printf "kubectl --namespace %s logs <pod>" $namespace -}}
{{- $least := include "vpn-gateway.leastReplicas" . | int -}}
{{- $replicas := include "vpn-gateway.hasReplicas" . | eq "true" -}}
- alert: VPNGatewayAbsent
  when: {{ gt $least 0 }}
  expr: absent(vpn_gateway_ready{SCOPE})
  for: 10m
  labels: {severity: critical}
  annotations:
    summary: "No Pod of {{ $gateway }} is scraped."
    description: "None runs, or none lets Prometheus in (networkPolicy.httpFrom)."
- alert: VPNGatewayNotForwarding
  when: true
  expr: vpn_gateway_condition{SCOPE,name=~"device|key|port|forwarding|firewall"} == 0
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: "<pod> does not forward packets: <name>."
    description: "The condition <name> of /readyz does not hold. Why: {{ $probe }}"
- alert: VPNGatewayConfigRefused
  when: true
  expr: vpn_gateway_config_last_reload_successful{SCOPE} == 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: "<pod> refuses its configuration."
    description: "The last good one stays in force, and no change is taken up until all faults are mended. What they are: {{ $probe }}"
- alert: VPNGatewayPeersDrifted
  when: true
  expr: vpn_gateway_drifted_peers{SCOPE} > 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: "Peers on the device of <pod> are not those of its configuration: <drift>."
    description: "The agent does not get the device to where it should be, or somebody else changes it. See {{ $logs }}"
- alert: VPNGatewayDeviceUnreadable
  when: true
  expr: vpn_gateway_device_dump_successful{SCOPE} == 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: "<pod> cannot read the peers from its device."
    description: "Metrics of the peers are missing. See {{ $logs }}"
- alert: VPNGatewayNextKeyUnanswered
  when: true
  expr: vpn_gateway_condition{SCOPE,name="nextKey"} == 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: "<pod> does not answer to the newer of its two server keys."
    description: "Clients that know the newer key alone do not connect. Why: {{ $probe }}"
- alert: VPNGatewayServerKeyRetires
  when: true
  expr: >-
    (vpn_gateway_server_key_retirement_timestamp_seconds{SCOPE} > 0) - time() < {{ div (include "vpn-gateway.seconds" .Values.keyRotation.server.overlap | int) 4 }}
    and on (namespace, job, pod)
    vpn_gateway_peers{SCOPE,state="connected"} > on (namespace, job, pod) vpn_gateway_moved_peers{SCOPE}
  labels: {severity: warning}
  annotations:
    summary: "The older server key of {{ $gateway }} goes in <duration>, and clients are connected by it."
    description: "Peers of <pod> use the older of two server keys, and are cut off when it goes. They need the newer one: docs/keys.md."
- alert: VPNGatewayKeyRotationFailed
  when: {{ .Values.keyRotation.enabled }}
  expr: min by (namespace, job, kind) (vpn_gateway_key_rotation_last_run_successful{SCOPE}) == 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: "The last Job that was to rotate keys of {{ $gateway }} failed: <kind>."
    description: "The keys in force stay. Its log says why: kubectl --namespace {{ $namespace }} get jobs"
- alert: VPNGatewaySecretNotRefreshed
  when: {{ .Values.externalSecrets.enabled }}
  expr: min by (namespace, job, name) (vpn_gateway_external_secret_ready{SCOPE}) == 0
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: "The ExternalSecret <name> of {{ $gateway }} is not refreshed."
    description: "What is mounted stays in force, and no change of the backend arrives. Why: kubectl --namespace {{ $namespace }} describe externalsecret <name>"
- alert: VPNGatewayReplicasMissing
  when: {{ and $replicas (gt $least 1) }}
  expr: max by (namespace, job) (vpn_gateway_fleet_members{SCOPE,state="alive"}) < {{ $least }}
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: "{{ $gateway }} has <value> of {{ $least }} replicas."
    description: "The others do not run, or no replica sees more of them: kubectl --namespace {{ $namespace }} get pods --output wide"
- alert: VPNGatewayReplicasApart
  when: {{ $replicas }}
  expr: >-
    sum by (namespace, job, pod) (vpn_gateway_fleet_members{SCOPE,state=~"alive|draining"})
    < on (namespace, job) group_left ()
    count by (namespace, job) (vpn_gateway_fleet_members{SCOPE,state="alive"})
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: "<pod> sees <value> replicas, and there are more."
    description: "Clients that move to it or away from it wait 15 s. Replicas need port {{ .Values.fleet.port }} between them, TCP and UDP, and DNS. See {{ $logs }}"
- alert: VPNGatewayConfigsDiffer
  when: {{ $replicas }}
  expr: count by (namespace, job) (count by (namespace, job, hash) (vpn_gateway_config_info{SCOPE})) > 1
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: "Replicas of {{ $gateway }} have <value> different configurations."
    description: "A client is served by one replica and refused by another. The metric vpn_gateway_config_info has the Pods."
- alert: VPNGatewayLinkBroken
  when: {{ include "vpn-gateway.hasLink" . | eq "true" }}
  expr: vpn_gateway_condition{SCOPE,name="link"} == 0
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: "<pod> does not pass packets on to other replicas."
    description: "What comes to it for peers that are elsewhere is lost. Why: {{ $probe }}"
- alert: VPNGatewayForeignMessages
  when: {{ .Values.fleet.enabled }}
  expr: sum by (namespace, job, pod) (increase(vpn_gateway_fleet_refused_messages_total{SCOPE,reason="encryption"}[5m])) > 0
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: "<pod> refuses messages that are encrypted with another key, or not at all."
    description: "A replica has another server key, or somebody without it sends to port {{ .Values.fleet.port }}."
- alert: VPNGatewayReplicaDied
  when: {{ include "vpn-gateway.hasReadinessGate" . | eq "true" }}
  expr: sum by (namespace, job) (increase(vpn_gateway_readiness_marked_total{SCOPE}[10m])) > 0
  labels: {severity: info}
  annotations:
    summary: "A dead replica of {{ $gateway }} was taken out of service by the others."
    description: "Its clients are with the others now. Which one it was: kubectl --namespace {{ $namespace }} describe pods"
- alert: VPNGatewayReplicaNotMarked
  when: {{ include "vpn-gateway.hasReadinessGate" . | eq "true" }}
  expr: sum by (namespace, job, pod, reason) (increase(vpn_gateway_readiness_refused_total{SCOPE,reason!="error"}[10m])) > 0
  labels: {severity: warning}
  annotations:
    summary: "<pod> did not take a dead replica out of service, or is not let back in: <reason>."
    description: "Replicas are apart from each other, or few are left: docs/high-availability.md, Partitions. See {{ $logs }}"
{{- end -}}

{{/* The same with SCOPE and <label> filled in. */}}
{{- define "vpn-gateway.alerts" -}}
{{- $pods := printf "%s-[a-z0-9]+(-[a-z0-9]+)?" (include "vpn-gateway.fullname" .) -}}
{{- $scope := printf "namespace=%q,job=%q,pod=~%q" (include "vpn-gateway.namespace" .) (include "vpn-gateway.name" .) $pods -}}
{{- $text := include "vpn-gateway.alertCatalogue" . | replace "SCOPE" $scope -}}
{{- regexReplaceAll "<([a-z]+)>" $text "{{ $$labels.${1} }}" | replace "$labels.value" "$value" | replace "$labels.duration" "$value | humanizeDuration" -}}
{{- end -}}

{{/* Rules of the PrometheusRule: the alerts that there is something to watch for, less those of disabled, and the user's own. */}}
{{- define "vpn-gateway.rules" -}}
{{- $values := .Values.metrics.prometheusRule -}}
{{- $rules := list -}}
{{- range include "vpn-gateway.alerts" . | fromYamlArray -}}
{{- if and .when (not (has .alert $values.disabled)) -}}
{{- $labels := merge (deepCopy ($values.alertLabels | default dict)) .labels -}}
{{- $rules = append $rules (set (omit . "when") "labels" $labels) -}}
{{- end -}}
{{- end -}}
{{- toYaml (concat $rules ($values.rules | default list)) -}}
{{- end -}}

{{/* Faults of the alerts, one to a line. */}}
{{- define "vpn-gateway.alertFaults" -}}
{{- $values := .Values.metrics.prometheusRule -}}
{{- if and $values.enabled (not .Values.metrics.serviceMonitor.enabled) (not .Values.metrics.podMonitor.enabled) }}
metrics.prometheusRule.enabled is true, and its alerts go by the labels of the chart's monitors, of which there is none; set metrics.serviceMonitor.enabled or metrics.podMonitor.enabled to true
{{- end -}}
{{- with $values.disabled -}}
{{- $names := list -}}
{{- range include "vpn-gateway.alerts" $ | fromYamlArray -}}
{{- $names = append $names .alert -}}
{{- end -}}
{{- range $i, $name := . -}}
{{- if not (has $name $names) }}
metrics.prometheusRule.disabled[{{ $i }}] {{ $name | quote }} is none of the chart's alerts, which are {{ join ", " $names }}; remove it
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
