"""What a RayJob of ray.io/v1 may have, as a JSON Schema: names and types of all fields of KubeRay's own resources, and of those parts of a pod
that are used or near.

After RayJobSpec, RayClusterSpec, HeadGroupSpec and WorkerGroupSpec in `ray-operator/apis/ray/v1` of ray-project/kuberay, its checks in
`ray-operator/controllers/ray/utils/validation.go`, the resource definition in `ray-operator/config/crd/bases/ray.io_rayjobs.yaml`, and PodSpec,
Container and Volume of Kubernetes' core/v1.
"""

from __future__ import annotations

from typing import Any


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others, so that a name that is written wrongly is found."""
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


def many(item: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least}


TEXT, FLAG, NUMBER, ANY = {"type": "string"}, {"type": "boolean"}, {"type": "number"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
#: As 2, "500m", 4Gi or 1e3; YAML may have read a number.
QUANTITY = {
    "type": ["string", "integer"],
    "pattern": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
#: What names a pod, a port or a volume: a label of DNS.
LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
MANAGERS = {"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]}

CONTAINER = closed(
    "name image",
    name=LABEL,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "Never", "IfNotPresent"]},
    command=many(TEXT),
    args=many(TEXT),
    workingDir=TEXT,
    resources=closed("", requests=QUANTITIES, limits=QUANTITIES, claims=many(ANY)),
    ports=many(
        closed(
            "containerPort",
            containerPort={**POSITIVE, "maximum": 65535},
            name={**LABEL, "maxLength": 15},
            protocol={"enum": ["TCP", "UDP", "SCTP"]},
            hostPort=COUNT,
            hostIP=TEXT,
        )
    ),
    volumeMounts=many(
        closed(
            "mountPath name",
            mountPath={**TEXT, "pattern": "^/"},
            name=LABEL,
            readOnly=FLAG,
            subPath=TEXT,
            subPathExpr=TEXT,
        )
    ),
    env=many(closed("name", name=TEXT, value=TEXT, valueFrom=ANY)),
    envFrom=many(ANY),
    lifecycle=ANY,
    livenessProbe=ANY,
    readinessProbe=ANY,
    startupProbe=ANY,
    securityContext=ANY,
)
VOLUME = closed(
    "name",
    name=LABEL,
    persistentVolumeClaim=closed("claimName", claimName=TEXT, readOnly=FLAG),
    emptyDir=closed("", medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    configMap=ANY,
    secret=ANY,
    hostPath=ANY,
    nfs=closed("path server", path=TEXT, server=TEXT, readOnly=FLAG),
)
TEMPLATE = closed(
    "spec",
    metadata=closed("", name=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=closed(
        "containers",
        containers=many(CONTAINER, 1),
        initContainers=many(CONTAINER),
        volumes=many(VOLUME),
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
        nodeSelector=TEXTS,
        tolerations=many(ANY),
        affinity=ANY,
        serviceAccountName=TEXT,
        imagePullSecrets=many(closed("", name=TEXT)),
        securityContext=ANY,
        terminationGracePeriodSeconds=COUNT,
    ),
)
HEAD_GROUP = closed(
    "rayStartParams template",
    rayStartParams=TEXTS,
    template=TEMPLATE,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService=ANY,
    enableIngress=FLAG,
    resources=TEXTS,
    labels=TEXTS,
)
WORKER_GROUP = closed(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=POSITIVE,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=TEXTS,
    template=TEMPLATE,
    scaleStrategy=closed("", workersToDelete=many(TEXT)),
    resources=TEXTS,
    labels=TEXTS,
)
RAY_CLUSTER = closed(
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+$"},
    suspend=FLAG,
    managedBy=MANAGERS,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=ANY,
    authOptions=closed("", mode={"enum": ["disabled", "token"]}),
    gcsFaultToleranceOptions=ANY,
    headServiceAnnotations=TEXTS,
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=many(WORKER_GROUP),
)
RAY_JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(
        "name",
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        namespace=TEXT,
        labels=TEXTS,
        annotations=TEXTS,
    ),
    spec=closed(
        "entrypoint rayClusterSpec",  # without a cluster it would be one that is chosen by clusterSelector
        entrypoint=TEXT,
        entrypointNumCpus=NUMBER,
        entrypointNumGpus=NUMBER,
        entrypointResources=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        metadata=TEXTS,
        activeDeadlineSeconds=POSITIVE,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        suspend=FLAG,
        managedBy=MANAGERS,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterPodTemplate=TEMPLATE,
        submitterConfig=closed("", backoffLimit=COUNT),
        deletionStrategy=ANY,
        clusterSelector=TEXTS,
        rayClusterSpec=RAY_CLUSTER,
    ),
)
