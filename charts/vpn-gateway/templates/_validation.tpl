{{/*
Fault of a host:port, or nothing. Takes field (its path) and value. The text begins with the
field and its value and ends with the fix.
*/}}
{{- define "vpn-gateway.endpointFault" -}}
{{- $host := regexReplaceAll ":[0-9]*$" .value "" -}}
{{- $port := .value | trimPrefix $host | trimPrefix ":" -}}
{{- $fault := "" -}}
{{- if regexMatch "^[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*$" $host -}}
{{- $fault = "is an IPv6 address without brackets; write it as [2001:db8::1]:51820" -}}
{{- else if not $port -}}
{{- $fault = "has no port; write it as host:port, such as 203.0.113.1:51820" -}}
{{- else if not (regexMatch "^[1-9][0-9]{0,4}$" $port | ternary (le (int $port) 65535) false) -}}
{{- $fault = printf "has the port %s; write one from 1 to 65535" $port -}}
{{- else if hasPrefix "[" $host -}}
{{- if not (and (hasSuffix "]" $host) (include "vpn-gateway.isIPv6" ($host | trimPrefix "[" | trimSuffix "]"))) -}}
{{- $fault = "has no IPv6 address in its brackets; write it as [2001:db8::1]:51820" -}}
{{- end -}}
{{- else if not (or (include "vpn-gateway.isIPv4" $host) (include "vpn-gateway.isDNSName" $host)) -}}
{{- $fault = printf "has the host %q, which is neither an IPv4 address, an IPv6 address in brackets nor a DNS name; write it as 203.0.113.1:51820, [2001:db8::1]:51820 or vpn.example.com:51820" $host -}}
{{- end -}}
{{- if $fault -}}
{{- printf "%s %q %s" .field .value $fault -}}
{{- end -}}
{{- end -}}

{{/*
"true" for a DNS name (RFC 1123), else empty. Its last label begins with a letter, so that a
mistyped address does not pass for one. Takes a string.
*/}}
{{- define "vpn-gateway.isDNSName" -}}
{{- $label := "([-A-Za-z0-9]{0,61}[A-Za-z0-9])?" -}}
{{- if le (len .) 253 -}}
{{- if regexMatch (printf "^([A-Za-z0-9]%s\\.)*[A-Za-z]%s\\.?$" $label $label) . }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/*
Faults of the peers, one to a line: what occurs twice, keys that do not belong here, and
addresses that are none. Whether they overlap is the agent's to judge: it sees those in the
Secrets too.
*/}}
{{- define "vpn-gateway.peerFaults" -}}
{{- $names := dict -}}
{{- $keys := dict -}}
{{- range $i, $peer := .Values.peers -}}
{{- $path := printf "peers[%d]" $i -}}
{{- if hasKey $names $peer.name }}
{{ $path }}.name {{ $peer.name | quote }} is that of peers[{{ get $names $peer.name }}] too; give each peer a name of its own
{{- else -}}
{{- $_ := set $names $peer.name $i -}}
{{- end -}}
{{- if hasKey $keys $peer.publicKey }}
{{ $path }}.publicKey {{ $peer.publicKey | quote }} is that of peers[{{ get $keys $peer.publicKey }}] too; give each peer a key of its own
{{- else -}}
{{- $_ := set $keys $peer.publicKey $i -}}
{{- end -}}
{{- if hasKey $peer "presharedKey" }}
{{ $path }}.presharedKey is a secret, and values are none: they end in the release, in Git and in logs; put it into a Secret under the key {{ $peer.name | quote }} and name that Secret in presharedKeys.existingSecrets
{{- end -}}
{{- if not (or $peer.addresses $peer.allowedIPs) }}
{{ $path }} {{ $peer.name | quote }} has neither addresses nor allowedIPs; give it an address out of server.addresses
{{- end }}
{{- include "vpn-gateway.addressFaults" (dict "root" $ "field" (printf "%s.addresses" $path) "list" $peer.addresses) }}
{{- include "vpn-gateway.networkFaults" (dict "root" $ "field" (printf "%s.allowedIPs" $path) "list" $peer.allowedIPs) }}
{{- include "vpn-gateway.destinationFaults" (dict "root" $ "field" (printf "%s.allowedDestinations" $path) "list" $peer.allowedDestinations) }}
{{- with $peer.endpoint -}}
{{- with include "vpn-gateway.endpointFault" (dict "field" (printf "%s.endpoint" $path) "value" .) }}
{{ . }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of the Service: fields that its type does not have, one to a line. */}}
{{- define "vpn-gateway.serviceFaults" -}}
{{- $service := .Values.service -}}
{{- if ne $service.type "LoadBalancer" -}}
{{- range list "allocateLoadBalancerNodePorts" "loadBalancerClass" "loadBalancerIP" "loadBalancerSourceRanges" -}}
{{- if or (get $service .) (kindIs "bool" (get $service .)) }}
service.{{ . }} {{ get $service . | toJson }} is for type LoadBalancer only; set service.type=LoadBalancer or remove it
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (and (eq $service.type "LoadBalancer") (eq $service.externalTrafficPolicy "Local")) -}}
{{- with int $service.healthCheckNodePort }}
service.healthCheckNodePort {{ . }} is for type LoadBalancer with externalTrafficPolicy Local only; set these or remove it
{{- end -}}
{{- end -}}
{{- if eq $service.type "ClusterIP" -}}
{{- range $path, $port := dict "keyRotation.server.nodePort" .Values.keyRotation.server.nodePort "service.nodePort" $service.nodePort "service.health.nodePort" $service.health.nodePort -}}
{{- if int $port }}
{{ $path }} {{ int $port }} is not for type ClusterIP; set service.type=NodePort or remove it
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of how many Pods there are, and of who may take them away, one to a line. */}}
{{- define "vpn-gateway.scaleFaults" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $replicas := include "vpn-gateway.leastReplicas" . | int -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}
autoscaling.minReplicas {{ int $scaling.minReplicas }} is greater than autoscaling.maxReplicas {{ int $scaling.maxReplicas }}; raise the one or lower the other
{{- end -}}
{{- if and (eq $scaling.metric.source "cpu") (not $scaling.metrics) (not (dig "requests" "cpu" "" (.Values.resources | default dict))) }}
autoscaling.enabled needs resources.requests.cpu, of which it takes a percentage; set that, autoscaling.metric.source or autoscaling.metrics
{{- end -}}
{{- end -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- $min := $budget.minAvailable -}}
{{- $max := $budget.maxUnavailable -}}
{{- if $budget.enabled -}}
{{- if not (or (kindIs "invalid" $min) (kindIs "invalid" $max)) }}
podDisruptionBudget has both minAvailable {{ toJson $min }} and maxUnavailable {{ toJson $max }}, and Kubernetes takes one; remove one
{{- end -}}
{{- $least := int $min -}}
{{- if hasSuffix "%" (toString $min) -}}
{{- $least = div (add (mul $replicas (toString $min | trimSuffix "%" | int)) 99) 100 | int -}}
{{- end -}}
{{- if and (gt $replicas 0) (ge $least $replicas) }}
podDisruptionBudget.minAvailable {{ toJson $min }} lets none of {{ $replicas }} Pods go and so blocks every node drain; set podDisruptionBudget.maxUnavailable=1 instead
{{- end -}}
{{- if and (not (kindIs "invalid" $max)) (has (toString $max) (list "0" "0%")) }}
podDisruptionBudget.maxUnavailable {{ toJson $max }} lets no Pod go and so blocks every node drain; set it to 1
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Faults of the names and labels of objects, one to a line. */}}
{{- define "vpn-gateway.nameFaults" -}}
{{- $name := include "vpn-gateway.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
the name of all objects would be {{ $name | quote }}, which no Service can have; set fullnameOverride to lower-case letters, digits and "-", with a letter first
{{- end -}}
{{- $reserved := include "vpn-gateway.selectorLabels" . | fromYaml | keys | sortAlpha -}}
{{- range $path, $labels := dict "commonLabels" .Values.commonLabels "autoscaling.metric.adapter.podLabels" .Values.autoscaling.metric.adapter.podLabels "podLabels" .Values.podLabels "keyJob.podLabels" .Values.keyJob.podLabels "keyRotation.podLabels" .Values.keyRotation.podLabels "service.labels" .Values.service.labels -}}
{{- range $reserved -}}
{{- if hasKey ($labels | default dict) . }}
{{ $path }} has {{ . }}, by which the gateway's Pods are selected; remove it (nameOverride changes the name)
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
