"""The public names, all of them: a name more or less is a decision."""

import importlib

import pytest

pytestmark = pytest.mark.elsewhere

NAMES = {
    "deel.lip": """
        Model Sequential __version__ activations applications callbacks
        certification constraints initializers layers losses metrics model
        normalizers optimizers parametrizations regularizers sampling utils
        vanillaModel
    """,
    "deel.lip.activations": """
        Abs FullSort GroupSort GroupSort2 Householder LipschitzPReLU MaxMin
        PReLUlip
    """,
    "deel.lip.applications": """
        DistanceField LiResNet LipNeXt OrthogonalResNet VGG
    """,
    "deel.lip.callbacks": """
        CondenseCallback LossParamLog LossParamScheduler MonitorCallback
    """,
    "deel.lip.certification": """
        Bound Certificates ConformalClassifier CoverageBounds
        DetectorCertificates LayerBound PixelCertificates
        RegressionCertificates Step TracedRays WassersteinBound
        attack_accuracy attack_distances
        attack_scores certified_accuracy certified_auroc
        certified_pixel_accuracy certify certify_detector certify_pixels
        certify_regression lipschitz_bound register_bound sphere_trace
        wasserstein_distance
    """,
    "deel.lip.compute_layer_sv": """
        compute_layer_sv compute_model_sv
    """,
    "deel.lip.constraints": """
        AutoWeightClipConstraint FrobeniusConstraint SpectralConstraint
        WeightClipConstraint
    """,
    "deel.lip.initializers": """
        DiracInitializer SpectralInitializer
    """,
    "deel.lip.layers": """
        AOLConv2D AOLDense Abs BatchCentering BatchLipNorm Condensable
        ConstrainedKernel
        FrobeniusConv2D FrobeniusDense FullSort GroupSort GroupSort2 Householder
        InvertibleDownSampling InvertibleUpSampling LayerCentering LipResidual
        LipschitzLayer LipschitzPReLU MaxMin Monotone OrthogonalConv1D
        OrthogonalConv2D
        OrthogonalConv2DTranspose OrthogonalConv3D OrthogonalDense
        OrthogonalRNN PReLUlip PartialResidual PrescaledResidual SLLConv2D
        SLLDense SandwichConv2D SandwichDense ScaleBiasLayer
        ScaledAdaptiveAveragePooling2D ScaledAdaptiveL2NormPooling2D
        ScaledAveragePooling1D ScaledAveragePooling2D ScaledAveragePooling3D
        ScaledGlobalAveragePooling1D ScaledGlobalAveragePooling2D
        ScaledGlobalAveragePooling3D ScaledGlobalL2NormPooling1D
        ScaledGlobalL2NormPooling2D ScaledGlobalL2NormPooling3D
        ScaledL2NormPooling1D ScaledL2NormPooling2D ScaledL2NormPooling3D
        SharedLipFactory SpatialShift2D SpectralConv1D SpectralConv2D
        SpectralConv2DTranspose SpectralConv3D SpectralDense
        SpectralDepthwiseConv2D SpectralGroupedConv2D unconstrained
    """,
    "deel.lip.layers.unconstrained": """
        ConvPair2D DensePair PadConv1D PadConv2D PadConv3D
        ResidualConv2D ResidualDense
    """,
    "deel.lip.losses": """
        CategoricalHinge EMMA HKR HKRAuto HKRauto HingeMargin HingeMarginAuto KR
        LogitAnnealing MultiMargin MulticlassHKR MulticlassHKRAuto
        MulticlassHKRauto MulticlassHinge MulticlassHingeAuto MulticlassKR
        MulticlassLseHKR MulticlassSoftHKR NegKR OffsetCategoricalCrossentropy
        TauBinaryCrossentropy TauCategoricalCrossentropy
        TauSparseCategoricalCrossentropy hinge_margin multiclass_hinge
        multiclass_soft_hinge
    """,
    "deel.lip.metrics": """
        BinaryAccuracy BinaryProvableAvgRobustness BinaryProvableRobustAccuracy
        CategoricalProvableAvgRobustness CategoricalProvableRobustAccuracy
    """,
    "deel.lip.model": """
        LossVariableModel LossVariableSequential Model Sequential vanillaModel
    """,
    "deel.lip.normalizers": """
        DEFAULT_BETA_BJORCK DEFAULT_EPS_BJORCK DEFAULT_EPS_SPECTRAL
        DEFAULT_MAXITER_BJORCK DEFAULT_MAXITER_SPECTRAL STOP_GRAD_SPECTRAL
        bjorck_normalization get_conv_operators
        reshaped_kernel_orthogonalization set_stop_grad_spectral
        spectral_normalization spectral_normalization_conv
    """,
    "deel.lip.optimizers": "Muon",
    "deel.lip.parametrizations": """
        AlmostOrthogonal
        BlockConvolution
        BlockReflector
        CholeskyQR
        ConstrainedVariable
        Frobenius
        Parametrization
        Skew
        Spectral
        SpectralOperator
    """,
    "deel.lip.plots": """
        accuracy_against_radius counterfactual level_sets margins saliency
        singular_values
    """,
    "deel.lip.regularizers": """
        Lorth Lorth2D LorthRegularizer OrthDenseRegularizer
    """,
    "deel.lip.sampling": """
        OneClassDataset outside_samples
    """,
    "deel.lip.utils": """
        evaluate_lip_const evaluate_lip_const_gen l2_normalize
        process_labels_for_multi_gpu
    """,
}


@pytest.mark.parametrize("module", list(NAMES))
def test_public_module_shows_the_names_of_the_list(module):
    module = importlib.import_module(module)
    assert sorted(dir(module)) == NAMES[module.__name__].split()
    assert sorted(module.__all__) == dir(module)


@pytest.mark.parametrize("module", list(NAMES))
def test_public_names_exist_and_are_documented(module):
    module = importlib.import_module(module)
    for name in dir(module):
        value = getattr(module, name)
        if callable(value):
            assert value.__doc__, f"{module.__name__}.{name}"
            assert value.__doc__.strip().split("\n")[0].endswith((".", "?"))


def test_the_package_lists_every_public_module():
    listed = set(NAMES["deel.lip"].split())
    modules = {name.split(".")[2] for name in NAMES if name != "deel.lip"}
    # Not imported with the package, since few programs need them.
    assert modules - listed == {"compute_layer_sv", "plots"}
