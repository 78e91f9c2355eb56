"""Operations: monitoring, upkeep, backups and recovery. The data layer knows nothing of them."""
