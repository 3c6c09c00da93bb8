{{/*
What the operator may do where it watches. Nobody may give rights that he doesn't have: all that it puts into the workers' Roles
(twinpartitions: get, list, watch; twinpartitions/status: patch; devicefleets: get, list, watch) is among them.
*/}}
{{- define "fleet-twin.operatorRules" -}}
- apiGroups: [fleettwin.io]
  resources: [devicefleets]
  verbs: [get, list, watch, patch]
- apiGroups: [fleettwin.io]
  resources: [devicefleets/status]
  verbs: [get, patch, update]
# Objects that block their fleet's deletion need it where the API server checks owner references.
- apiGroups: [fleettwin.io]
  resources: [devicefleets/finalizers]
  verbs: [update]
- apiGroups: [fleettwin.io]
  resources: [twinpartitions]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [fleettwin.io]
  resources: [twinpartitions/status]
  verbs: [get, patch]
- apiGroups: [apps]
  resources: [statefulsets, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
# To replace pods in a rolling update; the StatefulSet makes them.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# To let volumes grow.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- with .Values.rbac.credentialsSecrets }}
# To list the shards of fleets with spec.aws.credentialsSecretRef by the credentials that their workers have.
- apiGroups: [""]
  resources: [secrets]
  {{- if not (has "*" .) }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [get]
{{- end }}
{{- end -}}
