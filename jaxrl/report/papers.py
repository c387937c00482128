"""Citations: this library, the algorithms, the statistics."""

import jaxrl

PAPERS = {
    "reinforce": """@article{williams1992simple,
  title   = {Simple Statistical Gradient-Following Algorithms for Connectionist
             Reinforcement Learning},
  author  = {Williams, Ronald J.},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {229--256},
  year    = {1992}
}""",
    "actor_critic": """@inproceedings{konda2000actor,
  title     = {Actor-Critic Algorithms},
  author    = {Konda, Vijay R. and Tsitsiklis, John N.},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {12},
  pages     = {1008--1014},
  year      = {2000}
}""",
    "a2c": """@inproceedings{mnih2016asynchronous,
  title     = {Asynchronous Methods for Deep Reinforcement Learning},
  author    = {Mnih, Volodymyr and Badia, Adri{\\`a} Puigdom{\\`e}nech and Mirza, Mehdi and
               Graves, Alex and Lillicrap, Timothy and Harley, Tim and Silver, David and
               Kavukcuoglu, Koray},
  booktitle = {Proceedings of the 33rd International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {48},
  pages     = {1928--1937},
  year      = {2016}
}""",
    "natural_pg": """@inproceedings{kakade2001natural,
  title     = {A Natural Policy Gradient},
  author    = {Kakade, Sham M.},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {14},
  year      = {2001}
}""",
    "trpo": """@inproceedings{schulman2015trust,
  title     = {Trust Region Policy Optimization},
  author    = {Schulman, John and Levine, Sergey and Abbeel, Pieter and Jordan, Michael
               and Moritz, Philipp},
  booktitle = {International Conference on Machine Learning},
  pages     = {1889--1897},
  year      = {2015}
}""",
    "ppo": """@article{schulman2017proximal,
  title   = {Proximal Policy Optimization Algorithms},
  author  = {Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec
             and Klimov, Oleg},
  journal = {arXiv preprint arXiv:1707.06347},
  year    = {2017}
}""",
    "td": """@article{sutton1988learning,
  title   = {Learning to Predict by the Methods of Temporal Differences},
  author  = {Sutton, Richard S.},
  journal = {Machine Learning},
  volume  = {3},
  number  = {1},
  pages   = {9--44},
  year    = {1988}
}""",
    "sarsa": """@techreport{rummery1994online,
  title       = {On-line {Q}-Learning Using Connectionist Systems},
  author      = {Rummery, Gavin A. and Niranjan, Mahesan},
  institution = {Cambridge University Engineering Department},
  number      = {CUED/F-INFENG/TR 166},
  year        = {1994}
}""",
    "expected_sarsa": """@inproceedings{vanseijen2009theoretical,
  title     = {A Theoretical and Empirical Analysis of Expected {Sarsa}},
  author    = {van Seijen, Harm and van Hasselt, Hado and Whiteson, Shimon and Wiering,
               Marco},
  booktitle = {IEEE Symposium on Adaptive Dynamic Programming and Reinforcement Learning},
  pages     = {177--184},
  year      = {2009}
}""",
    "q_learning": """@article{watkins1992q,
  title   = {{Q}-Learning},
  author  = {Watkins, Christopher J. C. H. and Dayan, Peter},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {279--292},
  year    = {1992}
}""",
    "pqn": """@article{gallici2024simplifying,
  title   = {Simplifying Deep Temporal Difference Learning},
  author  = {Gallici, Matteo and Fellows, Mattie and Ellis, Benjamin and Pou, Bartomeu
             and Masmitja, Ivan and Foerster, Jakob Nicolaus and Martin, Mario},
  journal = {arXiv preprint arXiv:2407.04811},
  year    = {2024}
}""",
    "dqn": """@article{mnih2015human,
  title   = {Human-level control through deep reinforcement learning},
  author  = {Mnih, Volodymyr and Kavukcuoglu, Koray and Silver, David and others},
  journal = {Nature},
  volume  = {518},
  pages   = {529--533},
  year    = {2015}
}""",
    "c51": """@inproceedings{bellemare2017distributional,
  title     = {A Distributional Perspective on Reinforcement Learning},
  author    = {Bellemare, Marc G. and Dabney, Will and Munos, R{\\'e}mi},
  booktitle = {International Conference on Machine Learning},
  pages     = {449--458},
  year      = {2017}
}""",
    "qr_dqn": """@inproceedings{dabney2018distributional,
  title     = {Distributional Reinforcement Learning with Quantile Regression},
  author    = {Dabney, Will and Rowland, Mark and Bellemare, Marc G. and Munos, R{\\'e}mi},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2018}
}""",
    "iqn": """@inproceedings{dabney2018implicit,
  title     = {Implicit Quantile Networks for Distributional Reinforcement Learning},
  author    = {Dabney, Will and Ostrovski, Georg and Silver, David and Munos, R{\\'e}mi},
  booktitle = {International Conference on Machine Learning},
  pages     = {1096--1105},
  year      = {2018}
}""",
    "rainbow": """@inproceedings{hessel2018rainbow,
  title     = {Rainbow: Combining Improvements in Deep Reinforcement Learning},
  author    = {Hessel, Matteo and Modayil, Joseph and van Hasselt, Hado and Schaul, Tom
               and Ostrovski, Georg and Dabney, Will and Horgan, Dan and Piot, Bilal and
               Azar, Mohammad and Silver, David},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2018}
}""",
    "ddpg": """@inproceedings{lillicrap2016continuous,
  title     = {Continuous control with deep reinforcement learning},
  author    = {Lillicrap, Timothy P. and Hunt, Jonathan J. and others},
  booktitle = {International Conference on Learning Representations},
  year      = {2016}
}""",
    "td3": """@inproceedings{fujimoto2018addressing,
  title     = {Addressing Function Approximation Error in Actor-Critic Methods},
  author    = {Fujimoto, Scott and van Hoof, Herke and Meger, David},
  booktitle = {International Conference on Machine Learning},
  year      = {2018}
}""",
    "sac": """@inproceedings{haarnoja2018soft,
  title     = {Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning
               with a Stochastic Actor},
  author    = {Haarnoja, Tuomas and Zhou, Aurick and Abbeel, Pieter and Levine, Sergey},
  booktitle = {International Conference on Machine Learning},
  year      = {2018}
}""",
    "bc": """@inproceedings{pomerleau1989alvinn,
  title     = {{ALVINN}: An Autonomous Land Vehicle in a Neural Network},
  author    = {Pomerleau, Dean A.},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {1},
  pages     = {305--313},
  year      = {1989}
}""",
    "dagger": """@inproceedings{ross2011reduction,
  title     = {A Reduction of Imitation Learning and Structured Prediction to No-Regret
               Online Learning},
  author    = {Ross, St{\\'e}phane and Gordon, Geoffrey J. and Bagnell, J. Andrew},
  booktitle = {Proceedings of the Fourteenth International Conference on Artificial
               Intelligence and Statistics},
  series    = {Proceedings of Machine Learning Research},
  volume    = {15},
  pages     = {627--635},
  year      = {2011}
}""",
}
"""Algorithm -> its citation."""

STATISTICS = """@inproceedings{agarwal2021deep,
  title     = {Deep Reinforcement Learning at the Edge of the Statistical Precipice},
  author    = {Agarwal, Rishabh and Schwarzer, Max and Castro, Pablo Samuel and
               Courville, Aaron and Bellemare, Marc G.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}"""


def bibtex(algorithms: set[str]) -> str:
    """Format the citations of this library, of the algorithms and of the statistics."""
    software = f"""@software{{jaxrl_framework,
  author  = {{{{The jaxrl developers}}}},
  title   = {{jaxrl: whole reinforcement-learning experiments as pure JAX functions}},
  year    = {{2026}},
  version = {{{jaxrl.__version__}}}
}}"""
    papers = [PAPERS[name] for name in sorted(algorithms) if name in PAPERS]
    return "\n\n".join([software, *papers, STATISTICS]) + "\n"
