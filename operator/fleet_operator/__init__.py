"""The Kubernetes side: fleets observed, partitions planned and moved. It never touches a record or a twin."""
