{{/* What the replicas have together. */}}

{{/* "true" where there can be more than one replica for longer than an upgrade, else empty. */}}
{{- define "vpn-gateway.hasReplicas" -}}
{{- if and .Values.fleet.enabled (or .Values.autoscaling.enabled (ne (int .Values.replicaCount) 1)) }}true{{ end -}}
{{- end -}}

{{/* "true" where the Pods have a readiness gate, else empty. */}}
{{- define "vpn-gateway.hasReadinessGate" -}}
{{- if and (include "vpn-gateway.hasReplicas" .) .Values.fleet.readinessGate.enabled }}true{{ end -}}
{{- end -}}

{{/* "true" where the replicas pass packets on to each other, else empty. */}}
{{- define "vpn-gateway.hasLink" -}}
{{- if and (include "vpn-gateway.hasReplicas" .) .Values.fleet.link.enabled }}true{{ end -}}
{{- end -}}

{{/* "true" where an admission policy holds the gateway's ServiceAccount to its gate, else empty. The API is generally available since Kubernetes 1.30. */}}
{{- define "vpn-gateway.hasAdmissionPolicy" -}}
{{- if and (include "vpn-gateway.hasReadinessGate" .) .Values.fleet.readinessGate.admissionPolicy -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* Type of the condition that is the gate. It is in the agent too. */}}
{{- define "vpn-gateway.readinessGate" -}}
cloud-native-vpn.github.io/serving
{{- end -}}

{{/* "true" where the agent talks to the API server, else empty. */}}
{{- define "vpn-gateway.usesToken" -}}
{{- if or .Values.externalSecrets.enabled (include "vpn-gateway.hasReadinessGate" .) }}true{{ end -}}
{{- end -}}

{{/* Name of the Lease that decides between two halves of the replicas. */}}
{{- define "vpn-gateway.fleetLeaseName" -}}
{{- include "vpn-gateway.fullname" . }}-fleet
{{- end -}}

{{/* Metadata of the policy and its binding: the cluster's, and so named after the namespace too. */}}
{{- define "vpn-gateway.admissionMetadata" -}}
{{- $name := printf "%s-fleet.%s" (include "vpn-gateway.fullname" .) (include "vpn-gateway.namespace" .) -}}
{{- toYaml (omit (include "vpn-gateway.metadata" (dict "root" . "name" $name) | fromYaml) "namespace") -}}
{{- end -}}
