{{/* Faults of what the gateway is scaled on, one to a line. */}}
{{- define "vpn-gateway.metricFaults" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $metric := $scaling.metric -}}
{{- $source := $metric.source -}}
{{- if $scaling.enabled -}}
{{- if and $scaling.metrics (ne $source "cpu") }}
autoscaling.metrics has {{ len $scaling.metrics }} of its own beside autoscaling.metric.source {{ $source | quote }}; remove them, or set autoscaling.metric.source to cpu
{{- end -}}
{{- if and (eq $source "custom") (not $metric.custom.name) }}
autoscaling.metric.custom.name is empty; give the metric's name, such as vpn_gateway_peers
{{- end -}}
{{- if and (ne $source "custom") $metric.custom.selector }}
autoscaling.metric.custom.selector {{ toJson $metric.custom.selector }} is for autoscaling.metric.source custom, not {{ $source }}; set that or remove it
{{- end -}}
{{- range $field := list "fallback" "annotations" -}}
{{- if and (ne $source "keda") (get $metric.keda $field) }}
autoscaling.metric.keda.{{ $field }} {{ get $metric.keda $field | toJson }} is for autoscaling.metric.source keda, not {{ $source }}; set that or remove it
{{- end -}}
{{- end -}}
{{- if ne $source "adapter" -}}
{{- range $field, $value := dict "apiServiceAnnotations" $metric.adapter.apiServiceAnnotations "podAnnotations" $metric.adapter.podAnnotations "tls.existingSecret" $metric.adapter.tls.existingSecret "tls.caBundle" $metric.adapter.tls.caBundle -}}
{{- if $value }}
autoscaling.metric.adapter.{{ $field }} {{ toJson $value }} is for autoscaling.metric.source adapter, not {{ $source }}; set that or remove it
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if include "vpn-gateway.usesAdapter" . -}}
{{- $tls := $metric.adapter.tls -}}
{{- if and $tls.caBundle (not $tls.existingSecret) }}
autoscaling.metric.adapter.tls.caBundle verifies a certificate, and there is none; name its Secret in autoscaling.metric.adapter.tls.existingSecret
{{- end -}}
{{- if and $tls.caBundle (not (contains "-----BEGIN CERTIFICATE-----" $tls.caBundle)) }}
autoscaling.metric.adapter.tls.caBundle is not PEM; it begins with -----BEGIN CERTIFICATE-----, do not encode it again
{{- end -}}
{{- if and .Values.rbac.create (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
serviceAccount.create is false and serviceAccount.name names none, so that the adapter's rights would go to every Pod of the namespace; set serviceAccount.name
{{- end -}}
{{- end -}}
{{- end -}}
