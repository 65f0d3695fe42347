{{/* Faults of the fleet, one to a line. */}}
{{- define "vpn-gateway.fleetFaults" -}}
{{- if .Values.fleet.enabled -}}
{{- $port := int .Values.fleet.port -}}
{{- range $path, $other := dict "keyRotation.server.listenPort" (include "vpn-gateway.greenListenPort" .) "ports.health" .Values.ports.health "ports.http" .Values.ports.http "server.listenPort" .Values.server.listenPort -}}
{{- if eq $port (int $other) }}
fleet.port {{ $port }} is {{ $path }} too; give it a port of its own, such as 7946
{{- end -}}
{{- if and (eq (int $.Values.fleet.link.port) (int $other)) (include "vpn-gateway.hasLink" $) }}
fleet.link.port {{ $.Values.fleet.link.port }} is {{ $path }} too; give it a port of its own, such as 51840
{{- end -}}
{{- end -}}
{{- if and (eq $port (int .Values.fleet.link.port)) (include "vpn-gateway.hasLink" .) }}
fleet.link.port {{ $port }} is fleet.port too; give it a port of its own, such as 51840
{{- end -}}
{{- range $i, $variable := .Values.extraEnv -}}
{{- if has $variable.name (list "POD_NAME" "POD_IP" "POD_NAMESPACE") }}
extraEnv[{{ $i }}] is {{ $variable.name }}, which the Pod has for the fleet; remove it, or give it another name
{{- end -}}
{{- end -}}
{{- end -}}
{{- if include "vpn-gateway.hasReadinessGate" . -}}
{{- if and .Values.rbac.create (eq (include "vpn-gateway.serviceAccountName" .) "default") }}
serviceAccount.create is false and serviceAccount.name names none, so that the right to take Pods out of service would go to every Pod of the namespace; set serviceAccount.name, or fleet.readinessGate.enabled to false
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}
networkPolicy.egress lets the gateway send nowhere, so that it does not reach the API server and never becomes ready; let it go there, or set fleet.readinessGate.enabled to false
{{- end -}}
{{- end -}}
{{- end -}}
