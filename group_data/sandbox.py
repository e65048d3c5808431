"""Settings of the sandbox: a machine without a GPU, synthetic weights, built images kept between sandboxes."""

profile = "cpu"
proxy = "http://127.0.0.1:3128"
minimum_disk_gb = 15
minimum_memory_gb = 4
images = {"archive_dir": "/var/cache/atelier/images"}
