"""Clusters: ranks, nodes, and what must be known of each device."""

import pytest
from pydantic import ValidationError

from ditplan.profiles.cluster import ClusterProfile, Host
from tests.unit.factories import a_cluster


def test_devices_are_numbered_over_hosts_in_order() -> None:
    cluster = a_cluster()
    device = cluster.devices[0]
    hosts = (Host(name="a", devices=(device, device)), Host(name="b", devices=(device,)))
    cluster = cluster.model_copy(update={"hosts": hosts})
    assert cluster.device_nodes == ("a/0", "a/1", "b/0")
    assert len(cluster.devices) == 3


def test_a_device_without_link_or_measurement_is_refused() -> None:
    data = a_cluster().model_dump()
    data["links"][0]["b"] = "switch"
    ClusterProfile.model_validate(data)
    data["collectives"] = []
    with pytest.raises(ValidationError, match="no link names device node/1"):
        ClusterProfile.model_validate(data)


def test_one_device_needs_no_link() -> None:
    data = a_cluster().model_dump() | {"links": (), "collectives": ()}
    data["hosts"] = [{"name": "node", "devices": data["hosts"][0]["devices"][:1]}]
    assert ClusterProfile.model_validate(data).link_kinds == ()


def test_kinds_of_link_are_named_once_and_sorted() -> None:
    link = a_cluster().links[0]
    links = (link, link.model_copy(update={"kind": "ethernet"}), link)
    assert a_cluster().model_copy(update={"links": links}).link_kinds == ("ethernet", "nvlink")
