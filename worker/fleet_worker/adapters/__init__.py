"""The ports, for real and in memory: Kinesis over aiobotocore, twins in LMDB. They decide nothing about devices."""
