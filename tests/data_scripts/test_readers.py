"""The readers behind the scripts: MATLAB files against one that scipy wrote, COCO's polygons and run lengths against COCO's own tools."""
import base64
import struct
import zlib

import numpy as np
import pytest

from data_scripts import coco_masks as C
from data_scripts.matfile import read_mat
from data_scripts.voc2012 import sbd_labels

# Written by scipy 1.17: GTcls with 20 sparse Boundaries in a cell, Segmentation uint8 [7, 9] and CategoriesPresent; and a text. Once compressed, once not.
COMPRESSED = base64.b85decode(
    'O+i#lK|&xkE-)ZXK~ybfX>4U6P;6mzW^ZzBIv{Xwb7^=iAVYFxVRU6=Aa8CuAVzX&AWm;~ATlr@F*Z6fG&(UeATlsAHUIzs000000000000000000000000000000000000000000000'
    '00000000000000000Bu&4*&oF`v3p{c%0*700M3X1~wqY0mMuU5WouMGa_M-n0rWaPBECx!XN|{Hv?j){L;LX#G=g9VyFQO!KvxFsd*)dC7Jno5E19ZlGOBkkeYy^)MB6<P>c_VFK{C4'
    'XGF7K1j&8|sQL^BgnCvaw}JTVK+K6|4vf}dARcgz+Ba(7sC}dMjoLTl>{DPwwU3{GeKrh`dXE{1S;%1Hb1yU0?;tyQpl;!Z@+;t~KG@Tn9tr7SxZ5`a%{~?a_6a~~HZ&S$KNHjpd>CY='
    '0^BwD(^mnK`(W<I<vx(z_Ap~bM35;E;OFNjL?Ob(0FS*)45;l%CLrVo+5-TKia*j10000g0001Zoa19)U@!n;HX!BzVipDnV1@D-p<;|cGB3X*RRBnrq*jyw04Y@i_W')
PLAIN = zlib.decompress(base64.b85decode(
    'c-rlj(MrQG6o%6-n-;|k=>z1_3ze?wE{ZU^fg)HL*cT`+n}x0!ZInKWkL9EI2qrVNHA<_y5C%y({K?7b`A$M03H<QZALENt2M2z5GLI92r%A--G+TOjMf12g#*>UhjLa}iJ$#kL_>Mkf'
    '*TI9K=bn3mGv0THV1s7d1P4O*0O)bq<z~vMt{fXR6Ta*4A<5T$2o9xRu*dW%okdwp@-q27Su9D)A{Nv1!!zNFSWpo&%}CDYxKHq3t%`3be7nX6GX4=%@!eW&V!Xr6Qu35~^oOmnG*9z1'
    'PxCZy>v-7s%0n%@OL^~gxWNtjP4#x<+68l8)`H}?_>6iR{kQ6KxBa{qg$G-BeW^V~OTH;{G?~bWe{pU_eXCl1mh!Gs>l5rznbx-JA{s)dO{#ry8n~wNo;3M~?C<}<AKt-mtq`P?kv>;O'
    '3ib~CXIX>'))
EXPECTED = np.zeros((7, 9), np.uint8)
EXPECTED[2:5, 3:8], EXPECTED[5:, :2] = 15, 20

# height, width, polygon, run lengths and area as pycocotools 2.0 gives them
POLYGONS = [
    (20, 25, [2.3, 1.7, 22.9, 4.1, 18.2, 17.6, 9.5, 8.8, 3.1, 19.4], 'Z12b0?AN2N2O1N2O2M21O1O1O1O1O1O100O00M3M3M3MW1', 202),
    (12, 9, [-2, -3, 11.5, 5.2, 4, 14], '0483M3M2OO001N2N1ON', 77),
    (17, 31, [15.89, 30.37, 3.76, 30.31, 9.29, 12.97, 26.31, 12.5, 17.14, -0.09, 23.87, 16.76, 9.88, 25.02], 'g42=200000000000001OOFM83IO41M01011LO562JJM725OZ2', 88),
    (6, 6, [1, 1, 4, 1, 4, 4, 1, 4], '733000;', 9),
    (9, 7, [3.5, 2.5, 3.5, 6.5, 3.6, 4.0], 'o1', 0),
]


@pytest.mark.parametrize("content", [COMPRESSED, PLAIN], ids=["compressed", "plain"])
def test_sbd_labels_of_a_file_that_scipy_wrote(content):
    found = read_mat(content)
    assert set(found) == {"GTcls", "note"} and list(found["GTcls"]) == ["Boundaries", "Segmentation", "CategoriesPresent"]
    assert found["GTcls"]["Segmentation"].dtype == np.uint8 and (found["GTcls"]["Segmentation"] == EXPECTED).all()
    assert found["GTcls"]["CategoriesPresent"].tolist() == [[15], [20]] and len(found["GTcls"]["Boundaries"]) == 20
    assert (sbd_labels(content, "x.mat") == EXPECTED).all()


def test_big_endian_numbers():
    body = b"".join(struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8) for kind, content in
                    ((6, struct.pack(">II", 6, 0)), (5, struct.pack(">ii", 2, 3)), (1, b"x"), (9, struct.pack(">6d", *range(6)))))
    content = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(body)) + body
    assert read_mat(content)["x"].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("content", [b"", b"<html>" * 40, COMPRESSED[:200], COMPRESSED[:300] + b"\xff" * 30 + COMPRESSED[330:], PLAIN[:1500]],
                         ids=["empty", "web page", "cut", "flipped", "cut plain"])
def test_damaged_files_are_sentences(content):
    with pytest.raises(ValueError, match="x.mat holds no readable GTcls.Segmentation"):
        sbd_labels(content, "x.mat")


@pytest.mark.parametrize("height,width,points,code,area", POLYGONS)
def test_polygons_are_drawn_as_coco_does(height, width, points, code, area):
    expected = C.run_mask(code, height, width)
    assert expected.sum() == area and (C.polygon_mask(points, height, width) == expected).all()


def test_run_lengths_go_down_the_columns():
    assert C.run_mask([1, 2, 3], 2, 3).tolist() == [[False, True, False], [True, False, False]]
    assert C.run_lengths("0483M3M2OO001N2N1ON")[:4] == [0, 4, 8, 7]
    with pytest.raises(ValueError, match="cover 6 pixels, the image has 8"):
        C.run_mask([1, 2, 3], 2, 4)


def test_smaller_objects_lie_on_top_and_crowds_below():
    square = lambda a, b: [[a, a, b, a, b, b, a, b]]  # noqa: E731
    annotations = [{"id": 1, "category_id": 7, "area": 9, "iscrowd": 0, "segmentation": square(2, 5)},
                   {"id": 2, "category_id": 3, "area": 64, "iscrowd": 0, "segmentation": square(0, 8)},
                   {"id": 3, "category_id": 9, "area": 1, "iscrowd": 1, "segmentation": {"counts": [0, 100], "size": [10, 10]}}]
    labels = C.semantic_mask(annotations, 10, 10, {3: 1, 7: 2, 9: 3})
    assert labels[3, 3] == 2 and labels[1, 1] == labels[7, 7] == 1 and labels[9, 9] == 3 and np.bincount(labels.ravel()).tolist() == [0, 55, 9, 36]
    assert C.semantic_mask(annotations, 10, 10, {3: 1, 7: 2, 9: 3}, crowd="ignore")[9, 9] == 255
