#!/usr/bin/env python3
"""Has a real Prometheus scrape a real server, and asks it what the dashboard asks.

    tests/scraping.py BINARY DEPLOY DIRECTORY

BINARY is the server, DEPLOY the folder with prometheus/ and grafana/, DIRECTORY an empty one.
tests/deploy runs it. Everything listens on 127.0.0.1, and is ended before it ends itself.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

# Panels that may be empty: a hook's time is there once the hook has ended.
MAY_BE_EMPTY = {"Clean-up hooks"}
PATIENCE = 30


def get(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


def until(what, question):
    """What `question` answers, once that is something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            answer = question()
        except OSError:
            answer = None
        if answer:
            return answer
        time.sleep(0.05)
    sys.exit(f"waited {PATIENCE} s in vain for {what}")


def logged(path, pattern):
    """The first group of a pattern in a file, or nothing yet."""
    with open(path, encoding="utf-8") as log:
        found = re.search(pattern, log.read())
    return found and found.group(1)


def start_server(binary, directory, running):
    log = os.path.join(directory, "server.log")
    settings = {"LISTEN": "127.0.0.1:0", "ADMIN_LISTEN": "127.0.0.1:0", "LOG_FORMAT": "json"}
    settings["DATABASE_URL"] = "sqlite::memory:"
    with open(log, "w", encoding="utf-8") as stderr:
        running.append(subprocess.Popen([os.path.abspath(binary)], env=settings, stderr=stderr))
    pattern = r'"listen":"([^"]+)"'
    public = until("the server", lambda: logged(log, pattern))
    return public, logged(log, r'"admin_listen":"([^"]+)"')


def start_prometheus(deploy, admin, directory, running):
    with open(os.path.join(deploy, "prometheus/prometheus.yml"), encoding="utf-8") as file:
        config = file.read()
    assert config.count("127.0.0.1:9464") == 1 and config.count("15s") == 2
    config = config.replace("127.0.0.1:9464", admin).replace("15s", "1s")
    with open(os.path.join(directory, "prometheus.yml"), "w", encoding="utf-8") as file:
        file.write(config)
    with open(os.path.join(deploy, "prometheus/alerts.yml"), encoding="utf-8") as file:
        rules = file.read()
    with open(os.path.join(directory, "alerts.yml"), "w", encoding="utf-8") as file:
        file.write(rules)
    log = os.path.join(directory, "prometheus.log")
    command = [
        "prometheus",
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        "--web.listen-address=127.0.0.1:0",
    ]
    with open(log, "w", encoding="utf-8") as stderr:
        running.append(subprocess.Popen(command, stdout=stderr, stderr=stderr))
    # "TLS is disabled." names the port that the kernel has chosen.
    pattern = r"Listening on\" address=(127\.0\.0\.1:[1-9]\d*)"
    return until("Prometheus", lambda: logged(log, pattern))


def main():
    binary, deploy, directory = sys.argv[1:]
    running = []
    try:
        public, admin = start_server(binary, directory, running)
        prometheus = start_prometheus(deploy, admin, directory, running)

        def query(expression):
            arguments = urllib.parse.urlencode({"query": expression})
            answer = json.loads(get(f"http://{prometheus}/api/v1/query?{arguments}"))
            assert answer["status"] == "success", answer
            return answer["data"]["result"]

        def is_counted():
            get(f"http://{public}/json")
            return query('rate(http_requests_total{job="ebbtide"}[10s]) > 0')

        until("scrapes of the server", is_counted)
        with open(os.path.join(deploy, "grafana/dashboard.json"), encoding="utf-8") as file:
            panels = json.load(file)["panels"]
        asked = 0
        for panel in panels:
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$job", "ebbtide").replace("$instance", ".*")
                expression = expression.replace("$__rate_interval", "10s")
                expression = expression.replace("$__range", "1h")
                asked += 1
                if not query(expression) and panel["title"] not in MAY_BE_EMPTY:
                    sys.exit(f'nothing to show: {panel["title"]}: {expression}')
        firing = query("ALERTS")
        if firing:
            sys.exit(f"alerts of a server that is well: {firing}")
        print(f"measured: {asked} expressions")
    finally:
        for process in running:
            process.terminate()
        statuses = [process.wait(timeout=PATIENCE) for process in running]
    assert statuses == [0, 0], statuses


if __name__ == "__main__":
    main()
