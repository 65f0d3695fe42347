{{/* Scaling by load: which autoscaler there is, and what it goes by. */}}

{{/* What scales the gateway: keda, hpa, or nothing (empty). Never two. */}}
{{- define "vpn-gateway.scaler" -}}
{{- if .Values.autoscaling.enabled -}}
{{- eq .Values.autoscaling.metric.source "keda" | ternary "keda" "hpa" -}}
{{- end -}}
{{- end -}}

{{/* "true" when the chart brings the metrics adapter, else empty. */}}
{{- define "vpn-gateway.usesAdapter" -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.metric.source "adapter") }}true{{ end -}}
{{- end -}}

{{/* Name of the adapter's objects. */}}
{{- define "vpn-gateway.metricsName" -}}
{{- printf "%s-metrics" (include "vpn-gateway.fullname" .) -}}
{{- end -}}

{{/* Name of its objects that have no namespace: that of a release occurs in each namespace. */}}
{{- define "vpn-gateway.metricsClusterName" -}}
{{- printf "%s-%s" (include "vpn-gateway.namespace" .) (include "vpn-gateway.metricsName" .) -}}
{{- end -}}

{{/* Metrics of the HorizontalPodAutoscaler. */}}
{{- define "vpn-gateway.scalingMetrics" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $source := $scaling.metric.source -}}
{{- if $scaling.metrics -}}
{{- toYaml $scaling.metrics -}}
{{- else if eq $source "cpu" -}}
- type: Resource
  resource:
    name: cpu
    target:
      type: Utilization
      averageUtilization: {{ int $scaling.targetCPUUtilizationPercentage }}
{{- else -}}
{{- $name := eq $source "adapter" | ternary "vpn_gateway_connected_peers" $scaling.metric.custom.name -}}
{{- $selector := eq $source "adapter" | ternary dict ($scaling.metric.custom.selector | default dict) -}}
{{- if and (eq $name "vpn_gateway_peers") (not $selector) -}}
{{- $selector = dict "matchLabels" (dict "state" "connected") -}}
{{- end -}}
- type: Pods
  pods:
    metric:
      name: {{ $name | quote }}
      {{- with $selector }}
      selector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    target:
      type: AverageValue
      averageValue: {{ int $scaling.metric.targetConnectionsPerReplica | quote }}
{{- end -}}
{{- end -}}

{{/*
Pace of scaling. Out: at once, double or ten Pods in a quarter of a minute. In: one Pod a
minute, so that each has moved its peers before the next one goes, and five minutes late, as
peers that roam come back.
*/}}
{{- define "vpn-gateway.scalingBehavior" -}}
{{- if .Values.autoscaling.behavior -}}
{{- toYaml .Values.autoscaling.behavior -}}
{{- else -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
  - type: Percent
    value: 100
    periodSeconds: 15
  - type: Pods
    value: 10
    periodSeconds: 15
scaleDown:
  stabilizationWindowSeconds: 300
  selectPolicy: Max
  policies:
  - type: Pods
    value: 1
    periodSeconds: 60
{{- end -}}
{{- end -}}
