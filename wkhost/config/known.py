"""Keys of compatible configuration files that this server takes but has no use for.

They never fail, whatever their value; setting one gives one warning.
"""

from __future__ import annotations

UNUSED_KEYS: tuple[str, ...] = (
    *(f"agent.webhook.{name}" for name in ("httpAddr", "maxPushCount")),
    "agent.maxPushCount",
    *(f"auth.{name}" for name in ("on", "superToken", "kind", "users")),
    *(f"channel.{name}" for name in ("cacheCount", "createIfNoExist")),
    *(f"channel.{name}" for name in ("subscriberCompressOfCount", "onlineCmdChannelId")),
    *(f"channel.{name}" for name in ("cmdSuffix", "processTimeout")),
    *(f"cluster.{name}" for name in ("addr", "apiUrl", "reqTimeout", "role", "seed")),
    *(f"cluster.{name}" for name in ("slotCount", "slotReplicaCount", "channelReplicaCount")),
    *(f"cluster.{name}" for name in ("tickInterval", "heartbeatIntervalTick")),
    *(f"cluster.{name}" for name in ("electionIntervalTick", "pongMaxTick")),
    *(f"conversation.{name}" for name in ("on", "cacheExpire", "syncInterval", "syncOnce")),
    *(f"conversation.{name}" for name in ("userMaxCount", "bytesPerSave", "savePoolSize")),
    *(f"conversation.{name}" for name in ("workerNum", "workerScanInterval")),
    *(f"datasource.{name}" for name in ("addr", "channelInfoOn")),
    *(f"db.{name}" for name in ("shardNum", "slotShardNum")),
    "deadlockCheck",
    "deliveryMsgPoolSize",
    *(f"demo.{name}" for name in ("on", "addr")),
    "disableCMDMessageSync",
    "eventPoolSize",
    "ginMode",
    "handlePoolSize",
    "intranet.tcpAddr",
    *(f"jwt.{name}" for name in ("secret", "expire", "issuer")),
    *(f"logger.{name}" for name in ("dir", "traceOn")),
    "messageRetry.workerCount",
    "migrateStartStep",
    "oldV1Api",
    *(f"plugin.{name}" for name in ("socketPath", "install")),
    "pprofOn",
    "readTimeout",
    "tag.expire",
    *(f"tmpChannel.{name}" for name in ("suffix", "cacheCount")),
    *(f"trace.{name}" for name in ("prometheusApiUrl", "serviceName", "serviceHostName")),
    "userMsgQueueMaxSize",
    "violent",
    "writeTimeout",
)

UNUSED_GROUPS: tuple[str, ...] = ("logger.loki", "loki", "streamCache", "stress", "trace")
"""Groups of which any key is taken."""
