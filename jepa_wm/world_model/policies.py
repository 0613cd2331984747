"""The names of policies toward goals, as those meet them who play them and know no model."""

from jepa_wm.models.head_settings import PolicyName as PolicyName
